"""An engine without a model: vLLM's HTTP API on a Unix socket, with tokens that come by the clock.

Usage: python benchmarks/mock_engine.py --served-model-name NAME --uds SOCKET [--max-loras N]
       [--capacity N] [--rate R] [--tokens N] [--load-seconds S] [--start-seconds S]

It takes vLLM's command line, so `graftwork serve` starts it in the place of vLLM when
GRAFTWORK_ENGINE_COMMAND says so; flags that only vLLM knows are ignored.  It batches as vLLM does:
at most `capacity` sequences and `max-loras` adapters at a time, first come first served, where a
request whose adapter finds no slot is passed over.  A request gets `max_tokens` tokens, or
`--tokens`, `R` a second.  Every chunk of a stream has "sent", CLOCK_MONOTONIC in nanoseconds.

GET /mock tells what it has seen; PUT /mock {"hang": true} makes it accept and never answer, as an
engine core that is stuck; {"eat": BYTES} makes it allocate memory; {"fail": ERROR} ends all streams
with that error in an event, as vLLM does, until the error is null.
"""

import argparse
import asyncio
import json
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import uvicorn

_MOST_TOKENS = 200_000
ADAPTERS = "/graftwork/adapters"
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]


class Batch:
    """Who runs, who waits."""

    def __init__(self, capacity: int, max_loras: int):
        self.capacity = capacity
        self.max_loras = max_loras
        self.running: Counter[str] = Counter()  # by model
        self.waiting: deque[tuple[str, bool, asyncio.Future[None]]] = deque()
        self.most_running = self.most_waiting = self.most_adapters = 0

    async def enter(self, model: str, adapter: bool) -> None:
        turn = asyncio.get_running_loop().create_future()
        self.waiting.append((model, adapter, turn))
        self._schedule()
        self.most_waiting = max(self.most_waiting, len(self.waiting))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(model)
            raise

    def leave(self, model: str) -> None:
        self.running[model] -= 1
        if not self.running[model]:
            del self.running[model]
        self._schedule()

    def _schedule(self) -> None:
        passed_over: deque[tuple[str, bool, asyncio.Future[None]]] = deque()
        while self.waiting and self.running.total() < self.capacity:
            model, adapter, turn = self.waiting.popleft()
            if turn.cancelled():
                continue
            adapters = {name for name in self.running if "+" in name}
            if adapter and model not in adapters and len(adapters) >= self.max_loras:
                passed_over.append((model, adapter, turn))
                continue
            self.running[model] += 1
            turn.set_result(None)
        self.waiting.extendleft(reversed(passed_over))
        self.most_running = max(self.most_running, self.running.total())
        adapters_now = sum("+" in name for name in self.running)
        self.most_adapters = max(self.most_adapters, adapters_now)


class Engine:
    """The ASGI application."""

    def __init__(self, asked: argparse.Namespace):
        self.asked = asked
        self.batch = Batch(asked.capacity, asked.max_loras)
        self.adapters: dict[str, str] = {}
        self.seen: Counter[str] = Counter()
        self.asked_for: Counter[str] = Counter()  # model and salt
        self.tokens = 0
        self.hangs = False
        self.failure: dict[str, Any] | None = None
        self.eaten: list[bytearray] = []

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await _lifespan(receive, send)
        method, path = scope["method"], scope["path"]
        if path in ("/v1/completions", "/v1/chat/completions"):
            return await self._generate(path, receive, send)
        match method, path:
            case "GET", "/health":
                return await _answer(send, {})
            case "GET", "/v1/models":
                return await _answer(send, {"data": [{"id": self.asked.served_model_name}]})
            case "GET", "/metrics":
                return await _answer(send, self._exposition())
            case "GET", "/mock":
                return await _answer(send, self._state())
            case "PUT", "/mock":
                return await self._obey(json.loads(await _body(receive)), send)
            case _, _ if path.startswith(ADAPTERS):
                return await self._adapter(method, path.removeprefix(f"{ADAPTERS}/"), receive, send)
        await _answer(send, {"error": {"message": f"nothing at {path}"}}, 404)

    async def _generate(self, path: str, receive: Receive, send: Send) -> None:
        body = json.loads(await _body(receive))
        model, num = body["model"], body.get("max_tokens") or self.asked.tokens
        if not isinstance(num, int) or not 0 < num <= _MOST_TOKENS:
            message = f"max_tokens must lie between 1 and {_MOST_TOKENS}"
            error = {"message": message, "type": "BadRequestError", "param": None, "code": 400}
            return await _answer(send, {"error": error}, 400)
        adapter = model != self.asked.served_model_name
        if adapter and model not in self.adapters:
            error = {"message": f"no model {model}", "type": "NotFoundError", "param": "model"}
            return await _answer(send, {"error": {**error, "code": 404}}, 404)
        self.seen["requests"] += 1
        self.asked_for[f"{model} {body.get('cache_salt', '')}"] += 1
        work = asyncio.create_task(self._run(path, body, model, adapter, num, send))
        gone = asyncio.create_task(_gone(receive))
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            self.seen["aborted"] += 1
            work.cancel()
        gone.cancel()
        await asyncio.wait((work, gone))
        if not work.cancelled() and (error := work.exception()):
            raise error

    async def _run(
        self, path: str, body: Any, model: str, adapter: bool, num: int, send: Send
    ) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        await self.batch.enter(model, adapter)
        try:
            chat = path.endswith("chat/completions")
            if body.get("stream"):
                await self._stream(chat, model, num, send)
            else:
                await asyncio.sleep(num / self.asked.rate)
                self.tokens += num
                await _answer(send, _whole(chat, model, num))
            self.seen["completed"] += 1
            self.seen[f"completed {model}"] += 1
        finally:
            self.batch.leave(model)

    async def _stream(self, chat: bool, model: str, num: int, send: Send) -> None:
        started, head, tail = time.monotonic(), *_chunk(chat, model)
        await send(_start("text/event-stream; charset=utf-8"))
        for i in range(num):
            wait = started + (i + 1) / self.asked.rate - time.monotonic()
            await asyncio.sleep(max(0.0, wait))
            while self.hangs:
                await asyncio.sleep(0.1)
            if self.failure:
                told = b"data: %s\n\n" % json.dumps({"error": self.failure}).encode()
                await send({"type": "http.response.body", "body": told, "more_body": True})
                break
            self.tokens += 1
            event = b'data: {"sent":%d,%b%d%b}\n\n' % (time.monotonic_ns(), head, i, tail)
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

    async def _adapter(self, method: str, name: str, receive: Receive, send: Send) -> None:
        if method == "GET":
            listed = [{"name": n, "path": p, "resident": True} for n, p in self.adapters.items()]
            return await _answer(send, {"adapters": listed, "unnamed": 0})
        if method == "DELETE":
            found = self.adapters.pop(name, None) is not None
            return await _answer(send, {"name": name, "removed": found}, 200 if found else 404)
        path = json.loads(await _body(receive))["path"]
        await asyncio.sleep(self.asked.load_seconds)
        self.adapters[name] = path
        await _answer(send, {"name": name, "path": path})

    async def _obey(self, orders: Mapping[str, Any], send: Send) -> None:
        self.hangs = orders.get("hang", self.hangs)
        self.failure = orders.get("fail", self.failure)
        self.asked.rate = orders.get("rate", self.asked.rate)
        for _ in range(orders.get("eat", 0) >> 20):
            self.eaten.append(bytearray(b"x" * (1 << 20)))
        await _answer(send, self._state())

    def _state(self) -> dict[str, Any]:
        return {
            "seen": self.seen,
            "asked_for": self.asked_for,
            "adapters": self.adapters,
            "running": self.batch.running,
            "waiting": len(self.batch.waiting),
            "most_running": self.batch.most_running,
            "most_waiting": self.batch.most_waiting,
            "most_adapters": self.batch.most_adapters,
        }

    def _exposition(self) -> str:
        labels = f'{{engine="0",model_name="{self.asked.served_model_name}"}}'
        running, waiting = self.batch.running.total(), len(self.batch.waiting)
        return "".join(
            f"# TYPE vllm:{name} {kind}\nvllm:{name}{suffix}{labels} {value}.0\n"
            for name, suffix, kind, value in (
                ("generation_tokens", "_total", "counter", self.tokens),
                ("num_requests_running", "", "gauge", running),
                ("num_requests_waiting", "", "gauge", waiting),
            )
        )


def _chunk(chat: bool, model: str) -> tuple[bytes, bytes]:
    """What stands before and after the number of a token in its event."""
    kind = "chat.completion.chunk" if chat else "text_completion"
    head = f'"id":"cmpl-0","object":"{kind}","created":0,"model":"{model}","choices":[{{"index":0,'
    text, end = ('"delta":{"content":" token', '"},') if chat else ('"text":" token', '",')
    return (head + text).encode(), f'{end}"logprobs":null,"finish_reason":null}}]'.encode()


def _whole(chat: bool, model: str, num: int) -> Any:
    text = " token" * num
    part = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    kind = "chat.completion" if chat else "text_completion"
    choice = {"index": 0, **part, "finish_reason": "length"}
    usage = {"prompt_tokens": 1, "completion_tokens": num, "total_tokens": num + 1}
    return {"id": "cmpl-0", "object": kind, "model": model, "choices": [choice], "usage": usage}


def _start(content_type: str, status: int = 200, length: int | None = None) -> dict[str, Any]:
    headers = [(b"content-type", content_type.encode())]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    return {"type": "http.response.start", "status": status, "headers": headers}


async def _answer(send: Send, content: Any, status: int = 200) -> None:
    is_text = isinstance(content, str)
    body = content.encode() if is_text else json.dumps(content).encode()
    await send(_start("text/plain" if is_text else "application/json", status, len(body)))
    await send({"type": "http.response.body", "body": body})


async def _body(receive: Receive) -> bytes:
    content, more = b"", True
    while more:
        message = await receive()
        content, more = content + message.get("body", b""), message.get("more_body", False)
    return content


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


def _end_with_parent() -> None:
    """Leave when standard input ends, as an engine does."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--uds", required=True)
    parser.add_argument("--max-loras", type=int, default=8)
    parser.add_argument("--capacity", type=int, default=256)
    parser.add_argument("--rate", type=float, default=50.0, help="tokens a second of a sequence")
    parser.add_argument("--tokens", type=int, default=16, help="of a request that does not say")
    parser.add_argument("--load-seconds", type=float, default=0.0, help="what an adapter takes")
    parser.add_argument("--start-seconds", type=float, default=0.0)
    asked, _ = parser.parse_known_args()
    _end_with_parent()
    time.sleep(asked.start_seconds)
    config = uvicorn.Config(Engine(asked), uds=asked.uds, log_level="error", access_log=False)
    uvicorn.Server(config).run()


if __name__ == "__main__":
    main()
