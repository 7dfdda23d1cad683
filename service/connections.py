"""The gateway's server and its connections: uvicorn's, with patience for ends, none for delays."""

import asyncio
import signal
from types import FrameType
from typing import Any

import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.upstream import ABORT

_log = structlog.get_logger("serve")


class Connection(HttpToolsProtocol):
    """Ends when the head of a request takes longer than `seconds`, or the application says so."""

    def __init__(self, seconds: float, *args: Any, **further: Any):
        super().__init__(*args, **further)
        self._seconds = seconds
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._wait()

    def on_headers_complete(self) -> None:
        self._wait_no_more()
        self.scope["extensions"] = {ABORT: self.transport.abort}  # type: ignore[dict-item]
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._wait_no_more()
        self._patience = self.loop.call_later(self._seconds, self.transport.abort)

    def _wait_no_more(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


class Drain:
    """Whether the gateway is about to stop, for those who ask if it is ready."""

    def __init__(self) -> None:
        self.begun = False


class Server(uvicorn.Server):
    """On SIGTERM is not ready from then on, takes what still comes for `delay` seconds, then ends.

    Its end waits for the requests that are open, as long as its configuration says.  A second
    signal shortens the delay to nothing.
    """

    def __init__(self, config: uvicorn.Config, drain: Drain, delay: float):
        super().__init__(config)
        self._drain = drain
        self._delay = delay

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGTERM and not self._drain.begun and self._delay:
            self._drain.begun = True
            _log.info("draining", seconds=self._delay)
            loop = asyncio.get_running_loop()
            loop.call_soon_threadsafe(loop.call_later, self._delay, self._exit, sig, frame)
            return
        self._drain.begun = True
        self._exit(sig, frame)

    def _exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
