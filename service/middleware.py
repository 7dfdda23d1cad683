"""Around every request: an id, a limit on its body, a log line, figures, and a last resort."""

import asyncio
import re
import time
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import PayloadTooLarge, RequestTimeout
from service.handlers import foreseen, internal_error, response
from service.metrics import Metrics

_SLOWEST = 1000  # bytes a second
_REQUEST_ID = re.compile(r"[\w.-]{1,128}")
UNLOGGED = frozenset({"/health", "/ready", "/metrics"})  # machines ask every few seconds
_log = structlog.get_logger("access")


class BodyLimit:
    """Stop reading a body as soon as it exceeds its limit: uploads have a larger one.

    One that comes more slowly than `_SLOWEST` for longer than `stall` seconds is not read on.
    """

    def __init__(self, app: ASGIApp, *, upload_limit: int, limit: int, stall: float):
        self._app = app
        self._upload_limit = upload_limit
        self._limit = limit
        self._stall = stall

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        upload = Headers(scope=scope).get("content-type", "").startswith("multipart/")
        limit, seen = self._upload_limit if upload else self._limit, 0
        started, complete = asyncio.get_running_loop().time(), False

        async def counted() -> Message:
            nonlocal seen, complete
            latest = None if complete else started + self._stall + seen / _SLOWEST
            try:
                async with asyncio.timeout_at(latest):
                    message = await receive()
            except TimeoutError as error:
                raise RequestTimeout(f"{seen} bytes of the body came in time") from error
            complete = not message.get("more_body", False)
            seen += len(message.get("body", b""))
            if seen > limit:
                raise PayloadTooLarge(f"the request body exceeds {limit} bytes")
            return message

        await self._app(scope, counted, send)


class Observation:
    """Give each request an id, log and count it, and answer for what nothing else caught."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics):
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["request_id"] = request_id = _request_id(Headers(scope=scope))
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started, status = time.perf_counter(), 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            with self._metrics.in_flight.track_inprogress():
                await self._app(scope, receive, observed)
        except Exception as error:
            known = foreseen(error)
            if known is None:
                _log.exception("unexpected error", path=scope["path"])
            else:
                _log.warning("failure", path=scope["path"], error=str(error))
            if status:
                raise
            await (response(known) if known else internal_error())(scope, receive, observed)
        finally:
            self._record(scope, status, time.perf_counter() - started)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        model = scope["state"].get("model", "")
        self._metrics.observe_request(route, status, model, seconds)
        if route in UNLOGGED:
            return
        _log.info(
            "request",
            method=scope["method"],
            path=scope["path"],
            status=status,
            model=model or None,
            milliseconds=round(seconds * 1000, 2),
        )


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid4().hex
