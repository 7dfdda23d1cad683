"""`graftwork demo`: one command from the bundled files to an answer, and again from its home."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest
import yaml

DEMO = Path(__file__).parents[2] / "deploy" / "demo"
COMMAND = [sys.executable, "-P", "-m", "service.cli", "demo"]

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled files, with a recipe that reads less text and two of the adapters."""
    folder = tmp_path_factory.mktemp("demo")
    for part in ("base", "text"):
        (folder / part).symlink_to(DEMO / part)
    (folder / "adapters").mkdir()
    for adapter in sorted((DEMO / "adapters").iterdir())[:2]:
        shutil.copytree(adapter, folder / "adapters" / adapter.name)
    recipe = yaml.safe_load((DEMO / "recipe.yaml").read_text())
    for text in ("calibration", "evaluation"):
        recipe[text] |= {"sequences": 4, "length": 64}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture(scope="module")
def environment(
    source: Path,
    tmp_path_factory: pytest.TempPathFactory,
    fresh_database: Callable[[], AbstractContextManager[str | None]],
) -> Iterator[dict[str, str]]:
    """Of a demo with a home and a port of its own, and engines that leave room for others."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings: dict[str, object] = {
        "DEMO": source,
        "HOME": tmp_path_factory.mktemp("home") / "home",
        "PORT": port,
        "ENGINE_KV_CACHE_BYTES": 1 << 26,
    }
    with fresh_database() as url:
        settings |= {"DATABASE_URL": url} if url else {}
        own = {f"GRAFTWORK_{name}": str(value) for name, value in settings.items()}
        yield {**os.environ, **own}


@pytest.fixture(scope="module")
def first(environment: dict[str, str]) -> str:
    """What the demo prints at its first start."""
    run = subprocess.run(
        [*COMMAND, "--once"], env=environment, capture_output=True, text=True, timeout=500
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_one_command_prunes_serves_and_shows_an_answer(first: str, source: Path):
    assert "publish finished" in first
    for adapter in (source / "adapters").iterdir():
        assert f"demo-slim+{adapter.name}" in first
    assert "continues" in first


def test_the_curl_that_a_second_start_prints_works_and_nothing_is_pruned_again(
    first: str, environment: dict[str, str]
):
    demo = subprocess.Popen(COMMAND, env=environment, stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    try:
        printed = ""
        while "Serving until Ctrl-C" not in printed:
            assert (line := demo.stdout.readline()), printed
            printed += line
        assert "started" not in printed
        (curl,) = re.findall(r"^curl .*$", printed, re.MULTILINE)
        assert curl in first
        _, url, _, header, _, data = shlex.split(curl)
        name, _, value = header.partition(": ")
        answer = httpx.post(url, content=data, headers={name: value}, timeout=60)
        assert repr(answer.json()["choices"][0]["text"]) in first
    finally:
        demo.send_signal(signal.SIGINT)
        assert demo.wait(120) == 0


def test_when_it_ends_its_server_and_engines_end(environment: dict[str, str], first: str):
    deadline = time.monotonic() + 120
    home = environment["GRAFTWORK_HOME"]
    while processes := [
        entry.name
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _mentions(entry / "environ", home)
    ]:
        assert time.monotonic() < deadline, processes
        time.sleep(0.2)


def _mentions(environ: Path, text: str) -> bool:
    try:
        return text.encode() in environ.read_bytes()
    except OSError:
        return False
