"""A whole installation for a benchmark: `graftwork serve` as a process, over mock engines."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

HERE = Path(__file__).parent
DEMO = HERE.parent / "deploy" / "demo"


class Installation:
    """A gateway below `home` with one base, `demo`, and adapters of one content by any names."""

    def __init__(self, home: Path, engine: str = "", settings: Mapping[str, Any] | None = None):
        self.home = home
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        mock = f"{sys.executable} {HERE / 'mock_engine.py'} {engine}"
        own = {"home": home, "port": self.port, "worker": "false", "engine_command": mock}
        self._settings = {
            f"GRAFTWORK_{name.upper()}": str(value)
            for name, value in {**own, **(settings or {})}.items()
        }
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)
        self.engine_socket = home.absolute() / "run" / "demo.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the gateway, and wait until it answers."""
        with (self.home / "serve.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "service.cli", "serve"],
                env={**os.environ, **self._settings},
                stderr=log,
                stdout=log,
            )
        self.wait("/health", 300)

    def wait(self, path: str, seconds: float = 60.0) -> float:
        """Wait until a path answers 200; how long that took."""
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            try:
                if self.client.get(path).status_code == 200:
                    return time.monotonic() - started
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise TimeoutError(f"{path} does not answer 200; see {self.home / 'serve.log'}")

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def populate(self, adapters: int) -> list[str]:
        """Register the base and so many adapters; the ids of the adapters."""
        base = {"name": "demo", "path": str(DEMO / "base")}
        self.client.post("/v1/bases", json=base).raise_for_status()
        names = [f"a{i:03d}" for i in range(adapters)]
        for name in names:
            path = str(self._adapter())
            body = {"name": name, "base": "demo", "path": path}
            self.client.post("/v1/adapters", json=body).raise_for_status()
        self.wait("/ready")
        return [f"demo+{name}" for name in names]

    def tell_engine(self, **orders: Any) -> Any:
        """Give the mock engine orders; its state."""
        transport = httpx.HTTPTransport(uds=str(self.engine_socket))
        with httpx.Client(transport=transport, base_url="http://engine") as engine:
            return engine.put("/mock", json=orders).json()

    def verify(self) -> list[Any]:
        """Where catalog and disk differ, as `graftwork verify` finds."""
        command = [sys.executable, "-P", "-m", "service.cli", "verify", "--json"]
        own = {**os.environ, **self._settings}
        found: list[Any] = json.loads(subprocess.run(command, env=own, capture_output=True).stdout)
        return found

    def rss(self) -> int:
        """Bytes of memory that the gateway has."""
        assert self.process is not None
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def cpu(self) -> float:
        """CPU seconds that the gateway has used."""
        assert self.process is not None
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def _adapter(self) -> Path:
        """An adapter without what only evaluation needs."""
        folder = self.home / "adapter"
        if not folder.exists():
            ignore = shutil.ignore_patterns("eval.jsonl", "calibration.jsonl")
            shutil.copytree(DEMO / "adapters" / "wikisql", folder, ignore=ignore)
        return folder


@contextmanager
def running(home: Path, engine: str = "", **settings: Any) -> Iterator[Installation]:
    """An installation that ends with the block."""
    site = Installation(home, engine, settings)
    site.start()
    try:
        yield site
    finally:
        site.stop()
        site.client.close()
