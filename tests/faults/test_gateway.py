"""A gateway that is stopped or killed, that loses its disk, its database, or the time."""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pruning import artifacts
from pruning.recipe import PruneSpec, Recipe, Text
from service.catalog import Catalog

TEXT = b"a text that calibrates " * 100
MOCK = Path(__file__).parents[2] / "benchmarks" / "mock_engine.py"
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")


def upload(gateway: Any, content: bytes = TEXT) -> httpx.Response:
    files = {"file": ("text.txt", content)}
    return gateway.client.post("/v1/files", data={"purpose": "calibration"}, files=files)


def test_told_to_stop_it_is_not_ready_takes_what_still_comes_and_finishes_streams(
    make_gateway: Callable[..., Any], base_directory: Path
):
    gateway = make_gateway(drain_delay=1)
    gateway.add_base(base_directory)
    body = {"model": "demo", "prompt": "go", "max_tokens": 40, "stream": True}  # two seconds
    with gateway.client.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        gateway.process.send_signal(signal.SIGTERM)
        gateway.until_ready(503)
        assert gateway.client.get("/ready").json()["waiting"] == {"gateway": "stopping"}
        assert gateway.complete().status_code == 200
        seen = [line for line in lines if line]
    assert seen[-1] == "data: [DONE]"
    assert len(seen) == 40
    assert gateway.process.wait(30) == 0


def test_a_gateway_killed_during_an_upload_leaves_nothing_that_is_seen_and_cleans_up(
    make_gateway: Callable[..., Any], base_directory: Path, recovered: Callable[[float], None]
):
    gateway = make_gateway()
    gateway.add_base(base_directory)
    with socket.create_connection(("127.0.0.1", gateway.port)) as sender:
        head = "POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: 9000000\r\n"
        sender.sendall((head + "content-type: multipart/form-data; boundary=b\r\n\r\n").encode())
        part = '--b\r\ncontent-disposition: form-data; name="file"; filename="t"\r\n\r\n'
        sender.sendall(part.encode() + b"x" * 4_000_000)
        threading.Thread(target=post_and_lose, args=(gateway,)).start()
        files = gateway.home / "files"
        wait(lambda: list(files.glob(".staging-*")))  # it is copied, checked and hashed there
        gateway.kill()
    assert len(list(files.iterdir())) == 1
    gateway.start()
    recovered(gateway.until_ready())
    assert list(files.iterdir()) == []
    assert gateway.client.get("/v1/files").json()["data"] == []


def post_and_lose(gateway: Any) -> None:
    form: dict[str, Any] = {
        "data": {"purpose": "calibration"},
        "files": {"file": ("text.txt", b"word " * (20 << 20))},
    }
    with pytest.raises(httpx.TransportError), httpx.Client(timeout=120) as client:
        client.post(f"http://127.0.0.1:{gateway.port}/v1/files", **form)


def wait(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_on_a_full_disk_an_upload_is_refused_whole_and_the_rest_goes_on(
    make_gateway: Callable[..., Any], base_directory: Path, small_disk: Path, tmp_path: Path
):
    home = tmp_path / "home"
    home.mkdir()
    (home / "files").symlink_to(small_disk)
    gateway = make_gateway(home)
    gateway.add_base(base_directory)
    refused = upload(gateway, b"x" * (3 << 20))
    assert refused.status_code == 507
    assert refused.json()["error"]["code"] == "storage_full"
    assert gateway.client.get("/v1/files").json()["data"] == []
    assert list(small_disk.iterdir()) == []
    assert gateway.complete().status_code == 200
    assert upload(gateway).status_code == 200


def test_while_another_holds_the_lock_of_sqlite_writers_wait_and_completions_do_not(
    make_gateway: Callable[..., Any], base_directory: Path
):
    gateway = make_gateway()
    gateway.add_base(base_directory)
    other = sqlite3.connect(gateway.home / "graftwork.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    answers: list[httpx.Response] = []
    writer = threading.Thread(target=lambda: answers.append(upload(gateway)))
    writer.start()
    for _ in range(5):
        assert gateway.complete().status_code == 200
    assert gateway.client.get("/v1/models").status_code == 200
    assert answers == []
    other.execute("ROLLBACK")
    writer.join()
    assert [answer.status_code for answer in answers] == [200]


def test_while_the_database_is_gone_known_models_are_served_and_the_rest_says_so(
    make_gateway: Callable[..., Any],
    base_directory: Path,
    own_postgres: Any,
    recovered: Callable[[float], None],
):
    gateway = make_gateway(database_url=own_postgres.url)
    gateway.add_base(base_directory)
    assert gateway.complete().status_code == 200
    own_postgres.stop()
    assert gateway.complete().status_code == 200
    assert gateway.client.get("/ready").json()["waiting"] == {"database": "unreachable"}
    for answer in (gateway.client.get("/v1/adapters"), upload(gateway)):
        assert answer.status_code == 503, answer.text
        assert answer.json()["error"]["code"] == "database_unavailable"
        assert int(answer.headers["retry-after"]) > 0
    time.sleep(5.5)  # what is kept of keys and quotas is as old as it may be
    assert gateway.complete().status_code == 200
    own_postgres.start()
    recovered(gateway.until_ready())
    assert upload(gateway).status_code == 200


@pytest.mark.skipif(not FAKETIME.exists(), reason="libfaketime is not installed")
def test_a_clock_that_steps_a_day_either_way_disturbs_nothing(
    make_gateway: Callable[..., Any], base_directory: Path, tmp_path: Path
):
    clock = tmp_path / "clock"
    clock.write_text("+0")
    fake = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    real = f"env -u LD_PRELOAD {sys.executable} {MOCK}"
    gateway = make_gateway(environment=fake, tenant_requests_per_minute=600, engine_command=real)
    gateway.add_base(base_directory)
    created = []
    for offset in ("+0", "-1d", "+1d"):
        clock.write_text(offset)
        started = time.monotonic()
        answer = gateway.complete(max_tokens=10)
        assert answer.status_code == 200
        assert time.monotonic() - started < 10
        assert 0 < float(answer.headers["x-ratelimit-remaining-requests"]) <= 600
        assert gateway.client.get("/ready").status_code == 200
        created.append(upload(gateway, TEXT + offset.encode()).json()["created_at"])
    assert created[1] < created[0] < created[2]  # the clock was believed where it is shown


def test_a_damaged_artifact_is_put_aside_when_its_engine_starts_and_the_rest_goes_on(
    make_gateway: Callable[..., Any], base_directory: Path
):
    gateway = make_gateway()
    gateway.add_base(base_directory)
    artifact = publish(gateway.home, base_directory)
    wait(lambda: gateway.complete(model="slim").status_code == 200)
    weights = artifact / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert gateway.complete(model="slim").status_code == 200  # it was read before
    os.kill(gateway.engine_pid("slim"), signal.SIGKILL)
    wait(lambda: gateway.complete(model="slim").status_code == 500)
    error = gateway.complete(model="slim").json()["error"]
    assert error["code"] == "content_damaged"
    assert error["message"] == (
        "the artifact of slim is damaged and was put aside; "
        "delete this base with its adapters, and run its job again"
    )
    assert [*gateway.client.get("/ready").json()["waiting"].values()] == ["damaged"]
    (reason,) = (gateway.home / "quarantine").glob("*.reason")
    assert "model.safetensors has changed" in reason.read_text()
    assert (reason.with_suffix("") / "model" / "model.safetensors").read_bytes() == content
    assert not artifact.exists()
    assert gateway.complete().status_code == 200
    assert gateway.client.delete("/v1/bases/slim").status_code == 200


def publish(home: Path, base: Path) -> Path:
    """What a job makes, a slim base, where a worker puts it."""
    draft, store = home / "jobs" / "made", (home / "artifacts").absolute()
    shutil.copytree(base, draft / "model")
    text = Text(file="file-0")
    recipe = Recipe(name="slim", base="demo", target=0.2, calibration=text, evaluation=text)
    digest = artifacts.seal(draft, recipe, artifacts.Parents(base="", adapters={})).digest
    artifacts.publish(draft, store, digest)
    spec = PruneSpec(recipe=recipe, base=base, adapters={}, calibration=base, evaluation=base)
    catalog = Catalog(f"sqlite:///{home / 'graftwork.db'}")
    catalog.publish(spec, store / digest, digest)
    catalog.close()
    return store / digest
