"""How many tokens a completion took, from the `usage` that its engine tells.

A stream is asked for it too; the event that tells is kept from a client that did not ask.  Where
nothing tells, because the client left or the engine died, four bytes of the request count as a
token, and so does each event of the answer.
"""

import json
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Message, Receive

PATHS = frozenset({"/v1/completions", "/v1/chat/completions"})
_BYTES_OF_A_TOKEN = 4
_LEFT = 499  # the status that nobody receives


class Meter:
    """Listens to one request and its answer; `total` is what they took, once `over`."""

    def __init__(self, receive: Receive):
        self._receive = receive
        self._asked = False  # the body has been read
        self._hides = False  # the client did not ask what we ask
        self._size = 0
        self._events = 0
        self._status = 0
        self.streams = False
        self._told: int | None = None

    @property
    def total(self) -> int:
        """Tokens, as far as they are known; an answer that is an error took none."""
        if self._told is not None:
            return self._told
        if self._status != _LEFT and not 200 <= self._status < 300:
            return 0
        return self._size // _BYTES_OF_A_TOKEN + self._events

    async def receive(self) -> Message:
        """The body in one piece, with the question for the usage of a stream."""
        if self._asked:
            return await self._receive()
        pieces = []
        while (message := await self._receive())["type"] == "http.request":
            pieces.append(message.get("body", b""))
            if not message.get("more_body"):
                break
        else:
            return message
        self._asked = True
        body = self._asking(b"".join(pieces))
        self._size = len(body)
        return {"type": "http.request", "body": body, "more_body": False}

    def hear(self, message: Message) -> Message:
        """What the client gets of a part of the answer."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            kind = Headers(raw=message["headers"]).get("content-type", "")
            self.streams = kind.startswith("text/event-stream")
        elif message["type"] == "http.response.body" and (body := message.get("body", b"")):
            if self.streams:
                return {**message, "body": self._hear_events(body)}
            self._told = _total(_parsed(body))
        return message

    def _asking(self, content: bytes) -> bytes:
        body = _parsed(content)
        if not isinstance(body, dict) or body.get("stream") is not True:
            return content
        options = body.get("stream_options") or {}
        if not isinstance(options, dict) or options.get("include_usage"):
            return content
        self._hides = True
        return json.dumps({**body, "stream_options": {**options, "include_usage": True}}).encode()

    def _hear_events(self, chunk: bytes) -> bytes:
        self._events += chunk.count(b"\n\n")
        if b'"usage"' not in chunk:
            return chunk
        kept = []
        for event in chunk.split(b"\n\n"):
            data = _parsed(event.removeprefix(b"data:"))
            if (told := _total(data)) is not None:
                self._told = told
                if self._hides and data.get("choices") == []:
                    continue
            kept.append(event)
        return b"\n\n".join(kept)


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _total(answer: Any) -> int | None:
    usage = answer.get("usage") if isinstance(answer, dict) else None
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    return total if isinstance(total, int) else None
