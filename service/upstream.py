"""One request to an engine, and its answer: whole, or a stream of events as it comes."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import anyio
import structlog
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from service import handlers
from service.errors import DeadlineExceeded, EngineUnavailable, GraftworkError
from service.privacy import public_refusal

ABORT = "graftwork.abort"  # an extension of ASGI: end the connection, whatever is unsent
_EVENTS = "text/event-stream"
_CONNECT_SECONDS = 5.0
_KEPT_SECONDS = 3.0  # less than an engine keeps a connection that nobody uses
_END = b"\n\n"  # of an event
_log = structlog.get_logger("proxy")


def session(socket: Path) -> aiohttp.ClientSession:
    """What speaks to an engine, which may queue and think as long as it likes."""
    return aiohttp.ClientSession(
        base_url="http://engine",
        connector=aiohttp.UnixConnector(str(socket), limit=0, keepalive_timeout=_KEPT_SECONDS),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        headers={"accept-encoding": "identity"},
        skip_auto_headers=("user-agent", "accept"),
    )


def is_stream(upstream: aiohttp.ClientResponse) -> bool:
    return upstream.headers.get("content-type", "").startswith(_EVENTS)


class Stream(Response):
    """Passes events on, byte for byte, none of them in part, and no faster than they are read.

    What an engine says of its own failure is all that changes: as in an answer that is no stream.
    Closes what it holds whatever happens: the engine learns from its upstream to stop.  An engine
    that dies in the middle leaves an error event where its next one would have been, and so does a
    deadline.  A client that does not read for `stall` seconds loses its connection.
    """

    def __init__(
        self,
        upstream: aiohttp.ClientResponse,
        held: AsyncExitStack,
        headers: Mapping[str, str],
        heard: Callable[[], None],
        deadline: float | None,
        stall: float,
    ):
        self.status_code = upstream.status
        self.background = None
        self.init_headers(headers)
        self._upstream = upstream
        self._held = held
        self._heard = heard
        self._deadline = deadline
        self._stall = stall

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        departure = asyncio.create_task(_departure(receive))
        departure.add_done_callback(lambda _: self._upstream.close())
        try:
            await self._send(scope, send, departure)
        finally:
            departure.cancel()
            with anyio.CancelScope(shield=True):
                await self._held.aclose()

    async def _send(self, scope: Scope, send: Send, departure: asyncio.Task[None]) -> None:
        clock, sending = asyncio.get_running_loop().time, False
        try:
            async with asyncio.timeout_at(self._deadline) as limit:
                await send(self._start())
                async for events in self._events():
                    limit.reschedule(clock() + self._stall)
                    sending = True
                    await send(_body(events))
                    sending = False
                    limit.reschedule(self._deadline)
        except TimeoutError:
            if sending:
                _log.warning("a client does not read", seconds=self._stall)
                scope.get("extensions", {}).get(ABORT, _no_abort)()
                return
            await send(_body(_error_event(DeadlineExceeded())))
        except aiohttp.ClientError as error:
            if departure.done():
                return
            _log.warning("engine failed in the middle of a stream", error=repr(error))
            lost = "the engine stopped in the middle of this answer; send the request again"
            await send(_body(_error_event(EngineUnavailable(lost))))
        await send(_body(b"", more=False))

    async def _events(self) -> AsyncIterator[bytes]:
        pending = b""
        while chunk := await self._upstream.content.readany():
            self._heard()
            if pending or not chunk.endswith(_END):
                whole, end, pending = (pending + chunk).rpartition(_END)
                chunk = whole + end
            if chunk:
                yield _public(chunk)
        if pending:
            yield _public(pending)

    def _start(self) -> Message:
        return {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }


def _body(content: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}


def _public(events: bytes) -> bytes:
    """The same events; errors without what clients must not read."""
    if b'"error"' not in events:  # to parse them all would take too long
        return events
    return _END.join(map(_public_event, events.split(_END)))


def _public_event(event: bytes) -> bytes:
    said = event.partition(b"data:")[2]
    try:
        error = json.loads(said)["error"]
    except (ValueError, KeyError, TypeError):  # a text that has the word
        return event
    if error is None:
        return event
    _log.warning("engine failed in the middle of a stream", error=error)
    code = error.get("code") if isinstance(error, dict) else None
    status = code if isinstance(code, int) and code >= 400 else 500
    return b"data: " + public_refusal(status, said)


def _error_event(error: GraftworkError) -> bytes:
    return (
        f"data: {json.dumps(handlers.body(str(error), error.type, code=error.code))}\n\n".encode()
    )


def _no_abort() -> None:
    """Under a server without the extension the connection ends when the client does."""


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
