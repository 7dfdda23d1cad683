"""Engines that are killed, hang or run out of memory: who waits hears of it, and they come back."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LONG = {"model": "demo", "prompt": "go", "max_tokens": 2000, "stream": True}


@pytest.fixture
def gateway(make_gateway: Callable[..., Any], base_directory: Path) -> Any:
    gateway = make_gateway(engine_probe_seconds=0.3, engine_hang_seconds=1)
    gateway.add_base(base_directory)
    return gateway


def events_until_the_end(response: Any, begun: Callable[[], None]) -> list[Any]:
    """What the events of a stream say; `begun` is called at the first."""
    found: list[Any] = []
    for line in response.iter_lines():
        if line.startswith("data: {"):
            found.append(json.loads(line.removeprefix("data: ")))
            if len(found) == 1:
                begun()
    return found


def test_a_killed_engine_ends_its_streams_with_an_error_and_comes_back(
    gateway: Any, recovered: Callable[[float], None]
):
    def kill() -> None:
        os.kill(gateway.engine_pid(), signal.SIGKILL)

    with gateway.client.stream("POST", "/v1/completions", json=LONG) as response:
        events = events_until_the_end(response, kill)
    assert events[-1]["error"] == {
        "message": "the engine stopped in the middle of this answer; send the request again",
        "type": "server_error",
        "param": None,
        "code": "engine_unavailable",
    }
    gateway.until_ready(503)
    refused = gateway.complete()
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    recovered(gateway.until_ready())
    assert gateway.complete().status_code == 200


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            {
                "message": "CUDA error in /srv/models/acme~0123456789abcdef/weights for acme+x",
                "type": "InternalServerError",
                "param": None,
                "code": 500,
            },
            {
                "message": "the engine failed at this request; the server's log tells more",
                "type": "server_error",
                "param": None,
                "code": "engine_error",
            },
        ),
        (
            {
                "message": "demo~0123456789abcdef+sql@0123456789ab.77aa: /srv/own/x.json is bad",
                "type": "BadRequestError",
                "param": "tools",
                "code": 400,
            },
            {
                "message": "an adapter: x.json is bad",
                "type": "BadRequestError",
                "param": "tools",
                "code": 400,
            },
        ),
    ],
    ids=["of the engine", "of the request"],
)
def test_an_error_that_the_engine_writes_into_a_stream_is_told_without_its_insides(
    gateway: Any, said: dict[str, Any], told: dict[str, Any]
):
    def fail() -> None:
        with gateway.engine() as engine:
            engine.put("/mock", json={"fail": said})

    with gateway.client.stream("POST", "/v1/completions", json=LONG) as response:
        first, *_, last = events_until_the_end(response, fail)
    assert first["choices"][0]["text"] == " token0"
    assert last == {"error": told}
    assert said["message"] in gateway.log.read_text()


def test_an_engine_that_hangs_is_found_by_a_probe_and_started_again(
    gateway: Any, recovered: Callable[[float], None]
):
    before = gateway.engine_pid()
    with gateway.engine() as engine:
        engine.put("/mock", json={"hang": True})
    assert gateway.client.get("/ready").status_code == 200  # /health of the engine says nothing
    started = time.monotonic()
    assert gateway.complete().status_code == 503
    gateway.until_ready()
    recovered(time.monotonic() - started)
    assert gateway.engine_pid() != before
    assert gateway.complete().status_code == 200


def test_an_engine_that_is_busy_for_others_is_not_taken_for_one_that_hangs(
    make_gateway: Callable[..., Any], base_directory: Path
):
    gateway = make_gateway(
        engine_probe_seconds=0.2, engine_hang_seconds=0.5, engine_concurrent_requests=1
    )
    gateway.add_base(base_directory)
    before = gateway.engine_pid()
    with gateway.engine() as engine:
        assert engine.put("/mock", json={"rate": 5}).is_success
    assert gateway.complete(max_tokens=15, stream=True).status_code == 200  # three seconds
    assert gateway.engine_pid() == before


def test_an_engine_that_the_kernel_kills_for_its_memory_comes_back(
    gateway: Any, recovered: Callable[[float], None]
):
    group = Path("/sys/fs/cgroup/memory") / f"graftwork-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(200 << 20))
        (group / "cgroup.procs").write_text(str(gateway.engine_pid()))
    except OSError as error:
        pytest.skip(f"no memory cgroup of our own: {error}")
    try:
        before = gateway.engine_pid()

        def eat() -> None:
            with gateway.engine() as engine, pytest.raises(Exception, match="disconnect"):
                engine.put("/mock", json={"eat": 400 << 20}, timeout=60)

        eater = threading.Thread(target=eat)
        eater.start()
        gateway.until_ready(503)
        eater.join()
        recovered(gateway.until_ready())
        assert gateway.engine_pid() != before
        assert "exited with code -9" in gateway.log.read_text()
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            (group.parent / "cgroup.procs").write_text(pid)
        group.rmdir()


def test_when_the_client_leaves_the_engine_stops_and_its_place_is_free(gateway: Any):
    with gateway.client.stream("POST", "/v1/completions", json=LONG) as response:
        chunks = response.iter_raw()  # let go, it would close the stream
        next(chunks)
        with gateway.engine() as engine:
            assert engine.get("/mock").json()["running"] == {"demo": 1}
    deadline = time.monotonic() + 20
    with gateway.engine() as engine:
        while (state := engine.get("/mock").json())["running"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert state["seen"]["aborted"] == 1
