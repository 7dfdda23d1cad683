"""Clients that take their time: none of them holds a place, a file or memory for long."""

import json
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest


@pytest.fixture
def gateway(make_gateway: Callable[..., Any], base_directory: Path) -> Any:
    gateway = make_gateway(stall_timeout=1.5, engine_args="--rate 1e9")
    gateway.add_base(base_directory)
    return gateway


def test_whoever_does_not_finish_what_it_says_is_not_waited_for(gateway: Any):
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as head:
        head.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n")
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as body:
            body.sendall(b"POST /v1/keys HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n")
            body.sendall(b"content-type: application/json\r\n\r\n{")
            assert body.recv(1000).startswith(b"HTTP/1.1 408 ")
        with suppress(ConnectionResetError):
            assert head.recv(1000) == b""
    assert gateway.complete().status_code == 200


def test_whoever_does_not_read_loses_its_connection_and_its_place_in_the_engine(gateway: Any):
    assert gateway.complete().status_code == 200
    process = psutil.Process(gateway.process.pid)
    before = process.memory_info().rss
    body = {"model": "demo", "prompt": "go", "max_tokens": 200_000, "stream": True}  # 34 MB
    content = json.dumps(body).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", gateway.port))
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n"
        client.sendall(head.encode() + content)
        with gateway.engine() as engine:
            deadline, most, seen = time.monotonic() + 30, 0, False
            while not seen or engine.get("/mock").json()["running"]:
                seen = seen or bool(engine.get("/mock").json()["running"])
                most = max(most, process.memory_info().rss - before)
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert engine.get("/mock").json()["seen"]["aborted"] == 1
    assert most < 8 << 20
    assert "a client does not read" in gateway.log.read_text()


def test_a_request_is_answered_in_the_time_that_it_gives_or_not_at_all(gateway: Any):
    with gateway.engine() as engine:
        engine.put("/mock", json={"rate": 10})
    asked = {"model": "demo", "prompt": "go", "max_tokens": 100}
    headers = {"x-request-timeout": "0.5"}
    late = gateway.client.post("/v1/completions", json=asked, headers=headers)
    assert late.status_code == 503
    assert late.json()["error"]["code"] == "deadline_exceeded"
    stream = gateway.client.post("/v1/completions", json={**asked, "stream": True}, headers=headers)
    events = [json.loads(e[6:]) for e in stream.text.split("\n\n") if e.startswith("data: {")]
    assert 1 < len(events) < 10
    assert events[-1]["error"]["code"] == "deadline_exceeded"
    for wrong in ("soon", "-1", "0", "nan", "inf"):
        refused = gateway.client.post(
            "/v1/completions", json=asked, headers={"x-request-timeout": wrong}
        )
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "x-request-timeout"
