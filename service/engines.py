"""The supervisor of vLLM children: one engine per base, on a Unix socket, restarted on any exit."""

import asyncio
import contextlib
import math
import os
import re
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import anyio.to_thread
import httpx
import structlog

from service import upstream
from service.errors import AdapterRejected, BaseDamaged, EngineUnavailable, NotFound
from service.privacy import public
from service.records import base_name
from service.settings import Settings
from service.verification import Loading
from service.vllm_command import arguments, environment, on_gpu

Starts = contextlib.AbstractAsyncContextManager[None]  # that an engine holds while it starts
State = Literal["starting", "ready", "restarting", "stopped", "damaged"]

ADAPTERS = "/graftwork/adapters"
POLL_SECONDS = 0.25  # while an engine starts
WATCH_SECONDS = 1.0  # between looks at the health of one that runs
STOP_SECONDS = 15.0  # from SIGTERM to SIGKILL
STABLE_SECONDS = 60.0  # a start that lasts this long forgets earlier failures
MAX_DELAY = 60.0
EXPECTED_START = 30.0  # seconds, until an engine has shown its own
ADMIN_TIMEOUT = httpx.Timeout(120.0, connect=5.0)
SOCKET_PATH_BYTES = 107  # what the kernel takes, without the final zero

_TOKENS = re.compile(r"^vllm:(?:generation|prompt)_tokens_total\S* (\S+)$", re.MULTILINE)
_log = structlog.get_logger("engines")


@dataclass(frozen=True)
class EngineStatus:
    """What there is to know about an engine from outside; `failure` is why it last went down."""

    state: State
    pid: int | None
    restarts: int
    failure: str | None


class Engine:
    """One base, served by a vLLM child that is started again whenever it goes down."""

    def __init__(self, name: str, model: Path, socket: Path, settings: Settings, starts: Starts):
        self.name = name
        self.model = model
        self.state: State = "starting"
        self.client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(
                uds=str(socket), limits=httpx.Limits(max_keepalive_connections=32)
            ),
            base_url="http://engine",
            timeout=httpx.Timeout(None, connect=5.0),
        )
        self.session = upstream.session(socket)
        self._settings = settings
        self._loading = Loading(settings)
        self._socket = socket
        self._starts = starts
        self._pid: int | None = None
        self._restarts = 0
        self._failure: str | None = None
        self._expected_start = EXPECTED_START
        self._due = time.monotonic() + EXPECTED_START  # when it may be ready again
        self._heard = time.monotonic()
        self._adapters: dict[str, asyncio.Task[None]] = {}
        self._supervisor = asyncio.create_task(self._supervise())

    @property
    def status(self) -> EngineStatus:
        return EngineStatus(self.state, self._pid, self._restarts, self._failure)

    def unavailable(self) -> EngineUnavailable:
        """The error to raise while this engine cannot answer."""
        if self.state == "damaged":
            return BaseDamaged(self._failure)
        wait = max(1, math.ceil(self._due - time.monotonic()))
        base = base_name(self.name)
        return EngineUnavailable(f"{base}: the engine is {self.state}", retry_after=wait)

    async def stop(self) -> None:
        """Stop the child and everything that it started."""
        self._supervisor.cancel()
        await asyncio.wait([self._supervisor])
        self.state = "stopped"
        await self.client.aclose()
        await self.session.close()

    def heard(self) -> None:
        """Note that the child says something."""
        self._heard = time.monotonic()

    # Adapters

    def holds(self, name: str) -> bool:
        """Whether an adapter is loaded."""
        task = self._adapters.get(name)
        return task is not None and task.done() and not _failed(task)

    async def ensure_adapter(self, name: str, path: Path) -> bool:
        """Load an adapter unless it is loaded; whether this call began it, of many at once one.

        Raises AdapterRejected when it does not fit the base, EngineUnavailable when the engine
        goes down meanwhile.
        """
        task = self._adapters.get(name)
        begins = task is None
        if task is None:
            task = self._adapters[name] = asyncio.create_task(self._load(name, path))
            task.add_done_callback(lambda done: self._forget_if_failed(name, done))
        await asyncio.shield(task)
        return begins

    async def unload_adapter(self, name: str) -> None:
        """Free an adapter's memory, once the requests that use it are done."""
        task = self._adapters.pop(name, None)
        if task is not None:
            await asyncio.wait([task])
        await self._admin("DELETE", f"{ADAPTERS}/{quote(name)}", tolerate=404)

    async def residency(self) -> dict[str, Any]:
        """The adapters that the engine knows, and whether each is in its memory."""
        residency: dict[str, Any] = (await self._admin("GET", ADAPTERS)).json()
        return residency

    async def metrics(self) -> str:
        """vLLM's metrics, in Prometheus' text format."""
        return (await self._admin("GET", "/metrics")).text

    async def _load(self, name: str, path: Path) -> None:
        source = {"path": str(path.absolute())}
        response = await self._admin("PUT", f"{ADAPTERS}/{quote(name)}", json=source, tolerate=400)
        if response.is_error:
            reason = response.json()["error"]["message"]
            _log.warning("adapter rejected", engine=self.name, adapter=name, reason=reason)
            model, _, _ = name.partition("@")
            raise AdapterRejected(public(f"{model}: {reason}"), param="model")

    def _forget_if_failed(self, name: str, task: asyncio.Task[None]) -> None:
        if _failed(task) and self._adapters.get(name) is task:
            del self._adapters[name]

    async def _admin(
        self, method: str, url: str, *, json: Any = None, tolerate: int | None = None
    ) -> httpx.Response:
        try:
            response = await self.client.request(method, url, json=json, timeout=ADMIN_TIMEOUT)
        except httpx.TransportError as error:
            raise self.unavailable() from error
        if response.is_error and response.status_code != tolerate:
            raise self.unavailable()
        return response

    # Life of the child

    async def _supervise(self) -> None:
        failures = 0
        while True:
            started = time.monotonic()
            try:
                await anyio.to_thread.run_sync(self._loading.check_base, self.name, self.model)
                async with self._starts, contextlib.AsyncExitStack() as stack:
                    started = time.monotonic()  # it waited for its turn until now
                    child = await stack.enter_async_context(self._child())
                    await self._until_ready(child, started)
                    running = stack.pop_all()
                async with running:
                    self._failure = await self._until_down(child)
            except BaseDamaged as error:
                self.state, self._failure = "damaged", str(error)
            except Exception as error:  # a supervisor outlives whatever happens to its child
                self.state, self._failure = "restarting", str(error)
            failures = 0 if time.monotonic() - started > STABLE_SECONDS else failures
            delay = min(2.0**failures, MAX_DELAY)
            failures += 1
            self._restarts += 1
            self._due = time.monotonic() + delay + self._expected_start
            _log.warning("engine down", engine=self.name, failure=self._failure, retry_in=delay)
            await asyncio.sleep(delay)

    @contextlib.asynccontextmanager
    async def _child(self) -> AsyncIterator[asyncio.subprocess.Process]:
        """A running child; whatever happens, nothing of it is left in the end."""
        self._socket.unlink(missing_ok=True)
        log = self._settings.run / f"{self.name}.log"
        with log.open("ab" if self._restarts else "wb") as output:
            child = await asyncio.create_subprocess_exec(
                *arguments(self.name, self.model, self._socket, self._settings),
                stdin=asyncio.subprocess.PIPE,  # its lifeline: ends when we do
                stdout=output,
                stderr=output,
                env=environment(self._settings),
                start_new_session=True,
            )
        self._pid = child.pid
        try:
            yield child
        finally:
            self.state = "restarting"
            self._adapters = {}
            await _terminate(child)
            self._pid = None
            self._socket.unlink(missing_ok=True)

    async def _until_ready(self, child: asyncio.subprocess.Process, started: float) -> None:
        self.state = "starting" if self._restarts == 0 else "restarting"
        deadline = started + self._settings.engine_start_timeout
        while not await self._serves():
            if child.returncode is not None:
                raise ChildProcessError(f"did not start (exit code {child.returncode})")
            if time.monotonic() > deadline:
                raise TimeoutError(f"not ready after {self._settings.engine_start_timeout:.0f} s")
            await asyncio.sleep(POLL_SECONDS)
        self._expected_start = time.monotonic() - started
        self.state = "ready"
        _log.info("engine ready", engine=self.name, seconds=round(self._expected_start, 1))

    async def _serves(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            if (await self.client.get("/health", timeout=5.0)).is_success:
                models = (await self.client.get("/v1/models", timeout=5.0)).json()["data"]
                return any(model["id"] == self.name for model in models)
        return False

    async def _until_down(self, child: asyncio.subprocess.Process) -> str:
        """Why the child is of no more use: it left, or it says that its engine core is dead."""
        self.heard()
        while True:
            with contextlib.suppress(TimeoutError):
                return f"exited with code {await asyncio.wait_for(child.wait(), WATCH_SECONDS)}"
            with contextlib.suppress(httpx.TransportError):
                if (await self.client.get("/health", timeout=5.0)).status_code == 503:
                    return "lost its engine core"
            if not await self._lives(child):
                _signal_group(child, signal.SIGKILL)  # it would not hear anything gentler
                return f"made no token in {self._settings.engine_hang_seconds:.0f} s"

    async def _lives(self, child: asyncio.subprocess.Process) -> bool:
        """Whether a silent engine makes a token when it is asked for one.

        One that is busy may let the probe wait; then it counts that it made tokens for others.
        """
        if time.monotonic() - self._heard < self._settings.engine_probe_seconds:
            return True
        asked, made = time.monotonic(), await self._tokens_made()
        probe = {"model": self.name, "prompt": [0], "max_tokens": 1}
        answer = asyncio.create_task(
            self.client.post("/v1/completions", json=probe, timeout=httpx.Timeout(None))
        )
        gone = asyncio.create_task(child.wait())
        limit = self._settings.engine_hang_seconds
        try:
            await asyncio.wait((answer, gone), timeout=limit, return_when="FIRST_COMPLETED")
        finally:
            answer.cancel()
            gone.cancel()
            await asyncio.wait((answer, gone))
        if not gone.cancelled():
            return True  # it left by itself
        if not answer.cancelled():
            if answer.exception() is None:  # it answered, if only with an error
                self.heard()
            return time.monotonic() - self._heard < limit
        return self._heard > asked or made != await self._tokens_made()

    async def _tokens_made(self) -> float | None:
        """As the engine counts them; None where it does not say."""
        try:
            text = (await self.client.get("/metrics", timeout=5.0)).text
        except httpx.TransportError:
            return None
        return sum(map(float, _TOKENS.findall(text)))


def _failed(task: asyncio.Task[None]) -> bool:
    return task.cancelled() or task.exception() is not None


async def _terminate(child: asyncio.subprocess.Process) -> None:
    _signal_group(child, signal.SIGTERM)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(child.wait(), STOP_SECONDS)
    _signal_group(child, signal.SIGKILL)
    await child.wait()


def _signal_group(child: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


class Engines:
    """The engines of this gateway, one per served base."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._engines: dict[str, Engine] = {}
        # vLLM takes for its own what others take of a GPU's memory while it measures its needs
        self._starts: Starts = asyncio.Lock() if on_gpu() else contextlib.nullcontext()
        self._lock = asyncio.Lock()
        self._short = contextlib.ExitStack()

    async def reconcile(self, desired: Mapping[str, Path]) -> None:
        """Start what is missing, stop what is not wanted; does not wait until engines are ready."""
        async with self._lock:
            extra = [e for e in self._engines.values() if desired.get(e.name) != e.model]
            await asyncio.gather(*(engine.stop() for engine in extra))
            for engine in extra:
                del self._engines[engine.name]
            self._settings.run.mkdir(parents=True, exist_ok=True)
            for name in desired.keys() - self._engines.keys():
                self._engines[name] = Engine(
                    name, desired[name], self._socket(name), self._settings, self._starts
                )

    def get(self, base: str) -> Engine:
        """The engine of a base; NotFound, or EngineUnavailable unless it is ready."""
        if base not in self._engines:
            raise NotFound(f"{base}: no engine serves this base")
        engine = self._engines[base]
        if engine.state != "ready":
            raise engine.unavailable()
        return engine

    def ready(self, base: str) -> bool:
        """Whether a base is served right now."""
        return base in self._engines and self._engines[base].state == "ready"

    def states(self) -> dict[str, EngineStatus]:
        return {name: engine.status for name, engine in self._engines.items()}

    async def stop(self) -> None:
        """Stop all engines; none of their processes is left."""
        await self.reconcile({})
        self._short.close()

    def _socket(self, name: str) -> Path:
        path = self._settings.run.absolute() / f"{name}.sock"
        if len(os.fsencode(path)) <= SOCKET_PATH_BYTES:
            return path
        directory = tempfile.TemporaryDirectory(prefix="graftwork-")
        return Path(self._short.enter_context(directory)) / "engine.sock"
