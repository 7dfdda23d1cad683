"""Pass completions on to the engine of their model, and its answer back, untouched.

Only the `model` field changes: to the name inside the engine, which for an adapter names one
exact content; what spelled a composition beside it is gone.  When the client leaves, the engine
stops generating.
"""

import asyncio
import json
import math
import time
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, TypeVar

import aiohttp
import anyio.to_thread
import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pruning.errors import InvalidInput
from service.admission import Admission
from service.catalog import Catalog
from service.composer import Composer
from service.composition import FIELDS
from service.engines import Engine, Engines
from service.errors import DeadlineExceeded, EngineUnavailable, NotFound
from service.metrics import Metrics
from service.models import Model
from service.privacy import public_refusal
from service.resolver import Resolver
from service.settings import Settings
from service.tenants import Principal, mark
from service.upstream import Stream, is_stream
from service.verification import Loading

DEADLINE = "x-request-timeout"  # header: seconds until the end of the answer
_RETRY_AFTER = 2  # seconds; what an engine needs at least before anybody can tell more
_PASSED_ON = ("content-type", "retry-after")
_HEALTH_TIMEOUT = aiohttp.ClientTimeout(total=5.0)
_T = TypeVar("_T")
_log = structlog.get_logger("proxy")


class Proxy:
    """Forwards the requests of the OpenAI API that generate."""

    def __init__(
        self,
        settings: Settings,
        engines: Engines,
        composer: Composer,
        loading: Loading,
        admission: Admission,
        catalog: Catalog,
        metrics: Metrics,
    ):
        self._settings = settings
        self._loading = loading
        self._engines = engines
        self._composer = composer
        self._admission = admission
        self._resolver = Resolver(catalog)
        self._metrics = metrics

    async def forward(self, request: Request, asks: Principal) -> Response:
        """Answer `request` with what the engine of its model answers at the same path.

        Raises InvalidInput, ModelNotFound, Overloaded, DeadlineExceeded, EngineUnavailable or
        AdapterRejected.
        """
        started = time.perf_counter()
        deadline = self._deadline(request)
        content = await request.body()
        body = _parse(content)
        model = await self._resolver.find(asks.tenant, body)
        request.state.model = label = model.id if asks.key is None else model.public_id
        async with AsyncExitStack() as held:
            work = self._ask(request, model, asks, _Body(content, body), held, deadline)
            engine, upstream = await _unless_disconnected(request, _before(deadline, work))
            headers = {k: v for k in _PASSED_ON if (v := upstream.headers.get(k)) is not None}
            if not is_stream(upstream):
                answer = public_refusal(upstream.status, await upstream.read())
                return Response(answer, upstream.status, headers)
            seen = False

            def heard() -> None:
                nonlocal seen
                engine.heard()
                if not seen:
                    seen = True
                    self._metrics.observe_first_token(label, time.perf_counter() - started)

            stall = self._settings.stall_timeout
            return Stream(upstream, held.pop_all(), headers, heard, deadline, stall)

    def _deadline(self, request: Request) -> float | None:
        """When the request must have been answered, as a time of the event loop."""
        most = self._settings.request_timeout
        seconds = _seconds(request.headers.get(DEADLINE), most)
        return None if seconds is None else asyncio.get_running_loop().time() + seconds

    async def _ask(
        self,
        request: Request,
        model: Model,
        asks: Principal,
        body: "_Body",
        held: AsyncExitStack,
        deadline: float | None,
    ) -> tuple[Engine, aiohttp.ClientResponse]:
        """The engine's answer, once it is the request's turn; what it takes is in `held`."""
        engine = self._engine(model)
        bare = model.adapter is None and model.composed is None
        adapter = None if bare else model.engine_name
        turn = self._admission.turn(engine.name, asks.tenant, adapter, deadline)
        await self._enter(request, turn, held)
        engine = self._engine(model)  # it may have gone down meanwhile
        name = await self._prepare(engine, model, held)
        content = body.naming(name, asks)
        headers = {"content-type": "application/json", "x-request-id": request.state.request_id}
        upstream = await self._call(request, engine, content, held, headers)
        held.callback(upstream.close)
        return engine, upstream

    async def _enter(
        self, _request: Request, turn: AbstractAsyncContextManager[None], held: AsyncExitStack
    ) -> None:
        await held.enter_async_context(turn)

    async def _call(
        self,
        request: Request,
        engine: Engine,
        content: bytes,
        _held: AsyncExitStack,
        headers: dict[str, str],
    ) -> aiohttp.ClientResponse:
        """The engine's answer: read to its end, or still open when it is a stream of events."""
        return await _send(engine, request.url.path, content, headers)

    def _engine(self, model: Model) -> Engine:
        try:
            return self._engines.get(model.base.id)
        except NotFound as error:  # a base so new that its engine has not been started
            raise EngineUnavailable(retry_after=_RETRY_AFTER) from error

    async def _prepare(self, engine: Engine, model: Model, held: AsyncExitStack) -> str:
        """The model's name in its engine, where it stays until `held` is closed."""
        if model.composed is not None:
            return await held.enter_async_context(self._composer.hold(engine, model))
        if model.adapter is not None:
            if not engine.holds(model.engine_name):
                await anyio.to_thread.run_sync(self._loading.check, model.adapter)
            await engine.ensure_adapter(model.engine_name, model.adapter.path)
        return model.engine_name


class _Body:
    """A request's body, as it came and as JSON."""

    def __init__(self, content: bytes, parsed: dict[str, Any]):
        self._content = content
        self.parsed = parsed

    def naming(self, model: str, asks: Principal) -> bytes:
        """What the engine gets: the bytes that came, where nothing changes in them."""
        own = {key: value for key, value in self.parsed.items() if key not in FIELDS}
        if asks.key is not None:
            own["cache_salt"] = mark(asks.tenant, str(own.get("cache_salt", "")))
        elif len(own) == len(self.parsed) and own["model"] == model:
            return self._content
        return json.dumps({**own, "model": model}).encode()


def _parse(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidInput("body", f"is not valid JSON: {error}") from error


def _seconds(header: str | None, most: float | None) -> float | None:
    if header is None:
        return most
    try:
        seconds = float(header)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidInput(DEADLINE, f"must be a number of seconds above 0, not {header[:40]!r}")
    return seconds if most is None else min(seconds, most)


async def _send(
    engine: Engine, path: str, content: bytes, headers: dict[str, str]
) -> aiohttp.ClientResponse:
    try:
        response = await engine.session.post(path, data=content, headers=headers)
        if not is_stream(response):
            await response.read()
        if response.status >= 500:  # is it the answer of an engine that is dying?
            async with engine.session.get("/health", timeout=_HEALTH_TIMEOUT) as health:
                health.raise_for_status()
            _log.warning("engine failed", engine=engine.name, error=await response.text())
    except (aiohttp.ClientError, TimeoutError) as error:
        _log.warning("engine failed", engine=engine.name, error=repr(error))
        raise EngineUnavailable(retry_after=_RETRY_AFTER) from error
    engine.heard()
    return response


async def _before(deadline: float | None, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of `work`; DeadlineExceeded when it takes too long."""
    try:
        async with asyncio.timeout_at(deadline):
            return await work
    except TimeoutError as error:
        raise DeadlineExceeded(retry_after=_RETRY_AFTER) from error


async def _unless_disconnected(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of `work`, which is cancelled (ClientDisconnect) when the client leaves."""
    answer = asyncio.ensure_future(work)
    departure = asyncio.ensure_future(_departure(request))
    try:
        await asyncio.wait((answer, departure), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        answer.cancel()
        departure.cancel()
        await asyncio.wait((answer, departure))


async def _departure(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
