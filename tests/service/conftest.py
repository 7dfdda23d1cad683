"""A gateway and its upstreams, each a real server on a real socket; only vLLM itself is not there.

The upstreams are small, so that they can be told to answer late, to refuse, or to die.
"""

import asyncio
import json
import re
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from service import logs
from service.app import create_app
from service.catalog import Catalog
from service.engines import EngineStatus
from service.errors import AdapterRejected, EngineUnavailable, NotFound
from service.settings import Settings
from service.tenants import SCOPES
from service.upstream import session

EXPOSITION = """\
# HELP vllm:generation_tokens_total Generated tokens.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="demo"} 7.0
# HELP vllm:lora_requests_info Running adapters.
# TYPE vllm:lora_requests_info gauge
vllm:lora_requests_info{max_lora="8",running_lora_adapters="a,b"} 1.0
# HELP python_info Python.
# TYPE python_info gauge
python_info{major="3"} 1.0
"""


@contextmanager
def serving(app: Any, **where: Any) -> Iterator[uvicorn.Server]:
    """Run an ASGI application on a thread of its own."""
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1, **where)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    yield server
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive(), "the server did not stop"


class Upstream:
    """What stands behind a base: an ASGI application that does what the prompt says."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.left = threading.Event()  # a client went away before its answer was complete
        self.may_die = threading.Event()  # who asked for that has read what came before
        self.healthy = True
        paths = ("/v1/completions", "/v1/chat/completions")
        self.app = Starlette(
            routes=[
                *(Route(path, self._complete, methods=["POST"]) for path in paths),
                Route("/health", self._health),
                Route("/metrics", lambda _request: PlainTextResponse(EXPOSITION)),
            ]
        )

    async def _health(self, _request: Request) -> Response:
        return Response(status_code=200 if self.healthy else 503)

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        self.headers.append(request.headers)
        match body.get("prompt"):
            case "refuse":
                error = {"message": "no", "type": "BadRequestError", "param": "n", "code": 400}
                return JSONResponse({"error": error}, 400)
            case str(prompt) if prompt.startswith("refuse with "):
                said = {"message": f"no: {prompt.removeprefix('refuse with ')}", "param": "n"}
                error = {**said, "type": "BadRequestError", "code": 400}
                return JSONResponse({"error": error}, 400)
            case "fail":
                return JSONResponse({"error": {"message": "broken"}}, 500)
            case "wait":
                await self._until_left(request)
        usage = {"total_tokens": int(found[1])} if (found := _takes(body)) else None
        if body.get("stream"):
            told = usage if (body.get("stream_options") or {}).get("include_usage") else None
            events = self._events(body["prompt"], told)
            return StreamingResponse(events, media_type="text/event-stream")
        answer = {"path": request.url.path, "echo": body}
        return JSONResponse(answer | ({"usage": usage} if usage else {}))

    async def _until_left(self, request: Request) -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(0.01)
        self.left.set()

    async def _events(self, prompt: str, usage: Any) -> AsyncIterator[bytes]:
        yield b'data: {"text": "\xc3\xa4"}\n\n'
        if prompt == "die":
            while not self.may_die.is_set():
                await asyncio.sleep(0.01)
            yield b'data: {"text": "half an ev'
            raise ConnectionError("gone")
        if prompt == "forever":
            try:
                while True:
                    await asyncio.sleep(0.01)
                    yield b": still here\n\n"
            finally:
                self.left.set()
        for word in prompt.removeprefix("say ").split() if prompt.startswith("say ") else ():
            yield f"data: {json.dumps({'choices': [{'text': f' {word}'}]})}\n\n".encode()
        yield b"data: {}\r\n"
        await asyncio.sleep(0.05)
        yield b": odd but legal\n\nda"
        await asyncio.sleep(0.05)
        told = json.dumps({"choices": [], "usage": usage}) if usage else ""
        yield b"ta: %s[DONE]\n\n" % (told and f"{told}\n\ndata: ").encode()


def _takes(body: Any) -> re.Match[str] | None:
    """The number of tokens that a prompt says it takes."""
    return re.fullmatch(r"take (\d+) tokens", str(body.get("prompt")))


class StandInEngine:
    """An engine whose child is an Upstream; it keeps the books of adapters itself."""

    def __init__(self, name: str, socket: Path):
        self.name = name
        self.adapters: dict[str, Path] = {}
        self.contents: dict[str, str] = {}  # of manifests
        self.loads: list[str] = []
        self.loading: dict[str, asyncio.Event] = {}
        self.load_seconds = self.unload_seconds = 0.0
        self.rejects = self.rejects_new = False
        transport = httpx.AsyncHTTPTransport(uds=str(socket))
        self.client = httpx.AsyncClient(transport=transport, base_url="http://engine")
        self.session = session(socket)
        self.heard = lambda: None

    def holds(self, name: str) -> bool:
        return name in self.adapters

    async def ensure_adapter(self, name: str, path: Path) -> bool:
        if self.rejects or (self.rejects_new and name not in self.adapters):
            raise AdapterRejected(f"{name}: does not fit", param="model")
        if name in self.loading:
            await self.loading[name].wait()
        if name in self.adapters:
            return False
        loaded = self.loading[name] = asyncio.Event()
        await asyncio.sleep(self.load_seconds)
        self.adapters[name], _ = path, loaded.set()
        self.contents[name] = path.read_text() if path.is_file() else ""
        if built := json.loads(self.contents[name] or "{}").get("destination"):
            Path(built).mkdir(parents=True, exist_ok=True)
        self.loads.append(name)
        return True

    async def unload_adapter(self, name: str) -> None:
        self.adapters.pop(name, None)
        self.loading.pop(name, None)
        await asyncio.sleep(self.unload_seconds)

    async def residency(self) -> dict[str, Any]:
        adapters = [{"name": name, "resident": True} for name in self.adapters]
        return {"adapters": adapters, "unnamed": 0}

    async def metrics(self) -> str:
        return (await self.client.get("/metrics")).text


class StandInEngines:
    """Engines that are ready when they are asked for, unless they are held back."""

    def __init__(self, run: Path):
        self.run = run
        self.held: set[str] = set()
        self.running: dict[str, StandInEngine] = {}

    async def reconcile(self, desired: Mapping[str, Path]) -> None:
        for name in desired.keys() - self.running.keys():
            self.running[name] = StandInEngine(name, self.run / f"{name}.sock")
        for name in self.running.keys() - desired.keys():
            gone = self.running.pop(name)
            await gone.client.aclose()
            await gone.session.close()

    def get(self, base: str) -> StandInEngine:
        if base not in self.running:
            raise NotFound(f"no engine for {base}")
        if base in self.held:
            raise EngineUnavailable(retry_after=7)
        return self.running[base]

    def ready(self, base: str) -> bool:
        return base in self.running and base not in self.held

    def states(self) -> dict[str, EngineStatus]:
        return {
            name: EngineStatus("starting" if name in self.held else "ready", None, 0, None)
            for name in self.running
        }

    async def stop(self) -> None:
        await self.reconcile({})


@pytest.fixture(autouse=True)
def database(
    fresh_database: Callable[[], AbstractContextManager[str | None]],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[None]:
    """Settings, here and in processes that a test starts, name a database of the test's own."""
    with fresh_database() as url:
        if url is not None:
            monkeypatch.setenv("GRAFTWORK_DATABASE_URL", url)
        yield


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with all tables: to copy one is faster than to migrate it for every test."""
    path = tmp_path_factory.mktemp("database") / "graftwork.db"
    Catalog(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def settings(tmp_path: Path, migrated: Path) -> Settings:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(migrated, home)
    (tmp_path / "shm").mkdir()
    return Settings(
        home=home,
        composition_memory=tmp_path / "shm",
        engine_max_lora_rank=8,
        composition_limit=4,
        upload_limit_bytes=1 << 20,
        body_limit_bytes=1 << 16,
    )


@pytest.fixture
def engines(settings: Settings) -> StandInEngines:
    settings.run.mkdir(parents=True)
    return StandInEngines(settings.run)


@pytest.fixture
def app(settings: Settings, engines: StandInEngines) -> FastAPI:
    logs.configure()
    return create_app(settings, engines)  # type: ignore[arg-type]


@pytest.fixture
def gateway(app: FastAPI) -> Iterator[httpx.Client]:
    """A client of the running gateway."""
    with serving(app, port=0) as server:
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            yield client


@pytest.fixture
def serve_upstream(settings: Settings) -> Callable[[str], AbstractContextManager[Upstream]]:
    """Serve an upstream on the socket where the gateway expects the engine of a base."""

    @contextmanager
    def serve(base: str) -> Iterator[Upstream]:
        upstream = Upstream()
        with serving(upstream.app, uds=str(settings.run / f"{base}.sock")):
            yield upstream

    return serve


@pytest.fixture
def upstream(
    serve_upstream: Callable[[str], AbstractContextManager[Upstream]],
    demo: httpx.Client,
) -> Iterator[Upstream]:
    """The upstream of the base "demo"."""
    with serve_upstream("demo") as upstream:
        yield upstream


@pytest.fixture
def demo(gateway: httpx.Client, base_directory: Path, adapter_directory: Path) -> httpx.Client:
    """A gateway that has the base "demo", with the adapter "sql", and an engine for it."""
    base = {"name": "demo", "path": str(base_directory)}
    assert gateway.post("/v1/bases", json=base).status_code == 201
    adapter = {"name": "sql", "base": "demo", "path": str(adapter_directory)}
    assert gateway.post("/v1/adapters", json=adapter).status_code == 201
    while gateway.get("/ready").status_code != 200:
        time.sleep(0.02)
    return gateway


@pytest.fixture
def client_of(app: FastAPI, demo: httpx.Client) -> Callable[..., httpx.Client]:
    """A client of a tenant, without the scope admin unless it is named."""

    def make(tenant: str, *scopes: Any) -> httpx.Client:
        _, key = app.state.catalog.add_key(tenant, "", scopes or SCOPES[:3])
        headers = {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=demo.base_url, headers=headers, timeout=20)

    return make


@pytest.fixture
def acme(client_of: Callable[..., httpx.Client]) -> httpx.Client:
    return client_of("acme")


@pytest.fixture
def umbra(client_of: Callable[..., httpx.Client]) -> httpx.Client:
    return client_of("umbra")
