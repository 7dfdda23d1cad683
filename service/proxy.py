"""Pass completions on to the engine of their model, and its answer back, untouched.

Only the `model` field changes: to the name inside the engine, which for an adapter names one
exact content; what spelled a composition beside it is gone.  When the client leaves, the engine
stops generating.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import httpx
import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from pruning.errors import InvalidInput
from service import handlers
from service.catalog import Catalog
from service.composer import Composer
from service.composition import FIELDS
from service.engines import Engine, Engines
from service.errors import EngineUnavailable, NotFound
from service.metrics import Metrics
from service.models import Model, resolve
from service.privacy import public_refusal
from service.tenants import Principal, mark
from service.verification import Loading

_RETRY_AFTER = 2  # seconds; what an engine needs at least before anybody can tell more
_PASSED_ON = ("content-type", "retry-after")
_EVENTS = "text/event-stream"
_TIMEOUT = httpx.Timeout(None, connect=5.0)  # an engine may queue and think as long as it likes
_HEALTH_TIMEOUT = 5.0
_T = TypeVar("_T")
_log = structlog.get_logger("proxy")


class Proxy:
    """Forwards the requests of the OpenAI API that generate."""

    def __init__(self, engines: Engines, composer: Composer, loading: Loading, metrics: Metrics):
        self._loading = loading
        self._engines = engines
        self._composer = composer
        self._metrics = metrics

    async def forward(self, request: Request, catalog: Catalog, asks: Principal) -> Response:
        """Answer `request` with what the engine of its model answers at the same path.

        Raises InvalidInput, ModelNotFound, EngineUnavailable or AdapterRejected.
        """
        started = time.perf_counter()
        body = _parse(await request.body())
        model = await anyio.to_thread.run_sync(resolve, catalog, body)
        request.state.model = label = model.id if asks.key is None else model.public_id
        own = {key: value for key, value in body.items() if key not in FIELDS}
        if asks.key is not None:
            own["cache_salt"] = mark(asks.tenant, str(own.get("cache_salt", "")))
        async with AsyncExitStack() as held:
            engine, name = await self._prepare(model, held)
            upstream = await _unless_disconnected(
                request, _send(engine, request, {**own, "model": name})
            )
            headers = {k: v for k in _PASSED_ON if (v := upstream.headers.get(k)) is not None}
            if upstream.is_closed:
                content = public_refusal(upstream.status_code, upstream.content)
                return Response(content, upstream.status_code, headers)

            def first_event() -> None:
                self._metrics.observe_first_token(label, time.perf_counter() - started)

            held.push_async_callback(upstream.aclose)
            return _Stream(upstream, held.pop_all(), first_event, headers)

    async def _prepare(self, model: Model, held: AsyncExitStack) -> tuple[Engine, str]:
        """The engine, and the model's name in it, where it stays until `held` is closed."""
        try:
            engine = self._engines.get(model.base.id)
        except NotFound as error:  # a base so new that its engine has not been started
            raise EngineUnavailable(retry_after=_RETRY_AFTER) from error
        if model.composed is not None:
            return engine, await held.enter_async_context(self._composer.hold(engine, model))
        if model.adapter is not None:
            if not engine.holds(model.engine_name):
                await anyio.to_thread.run_sync(self._loading.check, model.adapter)
            await engine.ensure_adapter(model.engine_name, model.adapter.path)
        return engine, model.engine_name


def _parse(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidInput("body", f"is not valid JSON: {error}") from error


async def _send(engine: Engine, request: Request, body: dict[str, Any]) -> httpx.Response:
    """The engine's answer: read to its end, or still open when it is a stream of events."""
    client = engine.client
    upstream = client.build_request(
        "POST",
        request.url.path,
        content=json.dumps(body).encode(),
        headers={
            "content-type": "application/json",
            "accept-encoding": "identity",
            "x-request-id": request.state.request_id,
        },
        timeout=_TIMEOUT,
    )
    try:
        response = await client.send(upstream, stream=True)
        if not response.headers.get("content-type", "").startswith(_EVENTS):
            await response.aread()
        if response.is_server_error:  # is it the answer of an engine that is dying?
            (await client.get("/health", timeout=_HEALTH_TIMEOUT)).raise_for_status()
            _log.warning("engine failed", engine=engine.name, error=response.text)
        return response
    except httpx.HTTPError as error:
        _log.warning("engine failed", engine=engine.name, error=repr(error))
        raise EngineUnavailable(retry_after=_RETRY_AFTER) from error


class _Stream(StreamingResponse):
    """Closes what it holds whatever happens: the engine learns from its upstream to stop."""

    def __init__(
        self,
        upstream: httpx.Response,
        held: AsyncExitStack,
        first_event: Callable[[], None],
        headers: dict[str, str],
    ):
        super().__init__(_events(upstream, first_event), upstream.status_code, headers)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._held.aclose()


async def _events(
    upstream: httpx.Response, first_event: Callable[[], None]
) -> AsyncIterator[bytes]:
    """The events of a stream, byte for byte, none of them in part.

    An engine that dies in the middle leaves an error event where its next one would have been.
    """
    pending, started = b"", False
    try:
        async for chunk in upstream.aiter_raw():
            whole, end, pending = (pending + chunk).rpartition(b"\n\n")
            if end:
                if not started:
                    started = True
                    first_event()
                yield whole + end
        if pending:
            yield pending
    except httpx.TransportError as error:
        _log.warning("engine failed in the middle of a stream", error=repr(error))
        lost = handlers.body(
            "the engine stopped in the middle of this answer; send the request again",
            EngineUnavailable.type,
            code=EngineUnavailable.code,
        )
        yield f"data: {json.dumps(lost)}\n\n".encode()


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
