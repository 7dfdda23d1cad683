"""A load generator: HTTP/1.1 over kept connections, with as little of its own as it takes.

What it asks it sends as bytes; what it hears it parses in C (httptools).  An engine that stamps its
chunks with CLOCK_MONOTONIC (mock_engine.py) lets it tell how old each is when it arrives.
"""

import asyncio
import json
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httptools

_SENT = re.compile(rb'"sent":(\d+)')
_KEPT = 3.0  # seconds that a connection may be idle: servers close theirs after five
Address = tuple[str, int] | Path  # host and port, or a Unix socket


@dataclass
class Answer:
    """What came back; times are CLOCK_MONOTONIC seconds, ages of chunks seconds."""

    asked: float
    status: int = 0  # of HTTP; 0 when the connection broke first
    ended: float = 0.0
    first: float | None = None  # byte of the body
    ages: list[float] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    complete: bool = False

    @property
    def seconds(self) -> float:
        return self.ended - self.asked


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.used = time.monotonic()
        self._answer: Answer | None = None
        self._done: asyncio.Future[None] | None = None
        self._keep_body = False

    async def ask(self, request: bytes, keep_body: bool = False) -> Answer:
        assert self.transport is not None
        self._parser = httptools.HttpResponseParser(self)
        self._answer = answer = Answer(time.monotonic())
        self._done, self._keep_body = asyncio.get_running_loop().create_future(), keep_body
        if self.transport.is_closing():
            self.connection_lost(None)
        self.transport.write(request)
        await self._done
        return answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        if (answer := self._answer) is None:
            return
        answer.ages += [now - int(sent) / 1e9 for sent in _SENT.findall(data)]
        answer.ended = self.used = now
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        assert self._answer is not None
        self._answer.headers[name.decode().lower()] = value.decode()

    def on_body(self, data: bytes) -> None:
        assert self._answer is not None
        if self._answer.first is None:
            self._answer.first = self._answer.ended
        if self._keep_body:
            self._answer.body += data

    def on_message_complete(self) -> None:
        assert self._answer is not None
        self._answer.status, self._answer.complete = self._parser.get_status_code(), True
        self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None:
            self._answer.ended = time.monotonic()
            self._finish()

    def _finish(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)
        self._answer = None


class Target:
    """One server, and the connections to it that are free."""

    def __init__(self, address: Address, headers: Mapping[str, str] | None = None):
        self._address = address
        self._free: list[Connection] = []
        lines = {"host": "load", "content-type": "application/json", **(headers or {})}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in lines.items())

    def request(self, path: str, body: Mapping[str, Any] | None, headers: str = "") -> bytes:
        """The bytes of a request: POST with a body, else GET."""
        content = b"" if body is None else json.dumps(body).encode()
        start = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\n"
        length = f"content-length: {len(content)}\r\n\r\n"
        return f"{start}{self._headers}{headers}{length}".encode() + content

    async def ask(self, request: bytes, keep_body: bool = False) -> Answer:
        connection = await self._connection()
        answer = await connection.ask(request, keep_body)
        if answer.complete and answer.headers.get("connection") != "close":
            self._free.append(connection)
        else:
            assert connection.transport is not None
            connection.transport.close()
        return answer

    def close(self) -> None:
        for connection in self._free:
            assert connection.transport is not None
            connection.transport.close()
        self._free.clear()

    async def _connection(self) -> Connection:
        while self._free:
            connection = self._free.pop()
            assert connection.transport is not None
            if time.monotonic() - connection.used < _KEPT and not connection.transport.is_closing():
                return connection
            connection.transport.close()
        loop = asyncio.get_running_loop()
        if isinstance(self._address, Path):
            return (await loop.create_unix_connection(Connection, str(self._address)))[1]
        return (await loop.create_connection(Connection, *self._address))[1]


async def open_loop(
    rate: float, seconds: float, asks: Sequence[Callable[[], Awaitable[Any]]], seed: int = 0
) -> None:
    """Call one of `asks` in turn at Poisson times, whatever became of the earlier ones; then wait.

    An open loop (Schroeder et al., "Open Versus Closed", NSDI 2006): a server that is slow is not
    asked less.
    """
    instants, started = random.Random(seed), time.monotonic()
    due, tasks, count = started, set[asyncio.Future[Any]](), 0
    while due < started + seconds:
        if (wait := due - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        task = asyncio.ensure_future(asks[count % len(asks)]())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        count, due = count + 1, due + instants.expovariate(rate)
    await asyncio.gather(*tasks)


async def closed_loop(
    clients: int, seconds: float, ask: Callable[[], Awaitable[Any]]
) -> tuple[int, float]:
    """So many clients that ask again when they are answered; how many answers, and seconds."""
    started, count = time.monotonic(), 0

    async def client() -> None:
        nonlocal count
        while time.monotonic() < started + seconds:
            await ask()
            count += 1

    await asyncio.gather(*(client() for _ in range(clients)))
    return count, time.monotonic() - started


def quantile(values: Iterable[float], share: float) -> float:
    """The value below which that share of all lies (the nearest of them)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
