"""`graftwork serve` as a process over mock engines that are processes, to be broken for real."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

MOCK = Path(__file__).parents[2] / "benchmarks" / "mock_engine.py"
LONG = {"model": "demo", "prompt": "go", "max_tokens": 2000, "stream": True}


class Gateway:
    """A gateway's process, its home, and a client of it."""

    def __init__(self, home: Path, log: Path, **settings: Any):
        self.home, self.log = home, log
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.environment = {
            "GRAFTWORK_HOME": str(home),
            "GRAFTWORK_PORT": str(self.port),
            "GRAFTWORK_WORKER": "false",
            "GRAFTWORK_ENGINE_COMMAND": f"{sys.executable} {MOCK} --rate 20",
            **{f"GRAFTWORK_{name.upper()}": str(value) for name, value in settings.items()},
        }
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **environment: str) -> None:
        command = [sys.executable, "-P", "-m", "service.cli", "serve"]
        own = {**os.environ, **self.environment, **environment}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=own, stdout=log, stderr=log)
        self.until_ready(status=0, seconds=300)

    def until_ready(self, status: int = 200, seconds: float = 60.0) -> float:
        """Wait for this answer of /ready, any where it is 0; how many seconds it took."""
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            with suppress(httpx.TransportError):
                if self.client.get("/ready").status_code in (status or (200, 503),):
                    return time.monotonic() - started
                if not status:
                    return time.monotonic() - started
            time.sleep(0.02)
        raise AssertionError(f"/ready never answered {status}: {self.log.read_text()[-2000:]}")

    def add_base(self, directory: Path) -> None:
        answer = self.client.post("/v1/bases", json={"name": "demo", "path": str(directory)})
        assert answer.status_code == 201, answer.text
        self.until_ready()

    def complete(self, **body: Any) -> httpx.Response:
        asked = {"model": "demo", "prompt": "go", "max_tokens": 1, **body}
        return self.client.post("/v1/completions", json=asked)

    @contextmanager
    def engine(self) -> Iterator[httpx.Client]:
        """A client of the engine itself."""
        transport = httpx.HTTPTransport(uds=str(self.home / "run" / "demo.sock"))
        with httpx.Client(transport=transport, base_url="http://engine", timeout=5) as client:
            yield client

    def engine_pid(self, base: str = "demo") -> int:
        """Of the engine of a base that runs now."""
        assert self.process is not None
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                fields = path.read_text().rpartition(")")[2].split()
                command = path.with_name("cmdline").read_bytes()
                ours = b"mock_engine" in command and f"\0{base}\0".encode() in command
                if int(fields[1]) == self.process.pid and ours:
                    return int(path.parent.name)
        raise AssertionError("no engine runs")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture
def make_gateway(tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    """Start a gateway with further settings."""
    made: list[Gateway] = []

    def make(home: Path | None = None, environment: dict[str, str] | None = None, **settings: Any):
        gateway = Gateway(home or tmp_path / "home", tmp_path / "serve.log", **settings)
        made.append(gateway)
        gateway.start(**(environment or {}))
        return gateway

    yield make
    for gateway in made:
        gateway.client.close()
        if gateway.process is not None and gateway.process.poll() is None:
            gateway.kill()


@pytest.fixture
def recovered(record_property: Callable[[str, object], None]) -> Callable[[float], None]:
    """Note how many seconds a recovery took, for the table in docs/reliability.md."""

    def note(seconds: float) -> None:
        record_property("recovered", round(seconds, 2))
        print(f"recovered in {seconds:.2f} s")

    return note
