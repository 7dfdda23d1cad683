"""`graftwork serve` as a user runs it: the bundled base, pruned by a job, with every adapter."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

DEMO = Path(__file__).parents[2] / "deploy" / "demo"
ADAPTERS = sorted(path.name for path in (DEMO / "adapters").iterdir())
LIMIT = 3  # compositions that an engine keeps
REPEATS = 30  # requests after which it merges one
RECIPE = {"name": "demo-slim", "base": "demo", "target": 0.3}


@contextmanager
def _serve(home: Path, database: str | None) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings = {"HOME": home, "PORT": port, "ENGINE_KV_CACHE_BYTES": 1 << 26}
    settings |= {"COMPOSITION_LIMIT": LIMIT, "COMPOSITION_REPEATS": REPEATS}
    settings |= {"DATABASE_URL": database} if database else {}
    environment = {f"GRAFTWORK_{name}": str(value) for name, value in settings.items()}
    with (home / "serve.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "serve"],
            env=os.environ | environment,
            stdout=log,
            stderr=log,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(90) == 0


def _wait(what: str, seconds: float, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"{what} took longer than {seconds:.0f} s"
        time.sleep(0.5)


def _answers(client: httpx.Client, path: str) -> bool:
    try:
        return client.get(path).is_success
    except httpx.TransportError:
        return False


def _checked(response: httpx.Response) -> Any:
    assert response.is_success, response.text
    return response.json()


def _prune(client: httpx.Client) -> None:
    base = {"name": "demo", "path": str(DEMO / "base")}
    _checked(client.post("/v1/bases", json=base))
    for name in ADAPTERS:
        adapter = {"name": name, "base": "demo", "path": str(DEMO / "adapters" / name)}
        _checked(client.post("/v1/adapters", json=adapter))
    recipe: dict[str, Any] = dict(RECIPE)
    for purpose in ("calibration", "evaluation"):
        file = {"file": (f"{purpose}.txt", (DEMO / "text" / f"{purpose}.txt").read_bytes())}
        id = _checked(client.post("/v1/files", data={"purpose": purpose}, files=file))["id"]
        recipe[purpose] = {"file": id, "sequences": 4, "length": 64}
    path = f"/v1/pruning/jobs/{_checked(client.post('/v1/pruning/jobs', json=recipe))['id']}"
    _wait("the job", 600, lambda: _checked(client.get(path))["status"] not in ("queued", "running"))
    job = _checked(client.get(path))
    assert job["status"] == "succeeded", job["error"]


@pytest.fixture(scope="session")
def gateway(
    tmp_path_factory: pytest.TempPathFactory,
    fresh_database: Callable[[], AbstractContextManager[str | None]],
) -> Iterator[str]:
    """The address of a gateway that serves demo and demo-slim, with all adapters on both."""
    home = tmp_path_factory.mktemp("home")
    with (
        fresh_database() as database,
        _serve(home, database) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        _wait("the gateway", 60, lambda: _answers(client, "/health"))
        _prune(client)
        _wait("the engines", 600, lambda: _answers(client, "/ready"))
        yield url


@pytest.fixture(scope="session")
def models() -> tuple[str, ...]:
    """Every model id that there is: both bases, and the adapters of both."""
    bases = ("demo", "demo-slim")
    return (*bases, *(f"{base}+{name}" for base in bases for name in ADAPTERS))
