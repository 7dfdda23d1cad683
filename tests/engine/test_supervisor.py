"""Engines that go down come back by themselves, and engines that are stopped leave nothing."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from service.engines import Engine, Engines
from service.errors import EngineUnavailable, NotFound
from service.settings import Settings

pytestmark = pytest.mark.engine
shared_loop = pytest.mark.asyncio(loop_scope="session")

Until = Callable[..., Awaitable[None]]
Complete = Callable[[Engine, str, list[int]], Awaitable[list[int]]]

GATEWAY = """
import asyncio, sys
from pathlib import Path
from service.engines import Engines
from service.settings import Settings

async def main():
    engines = Engines(Settings(home=Path(sys.argv[1]), engine_kv_cache_bytes=1 << 26))
    await engines.reconcile({"slim": Path(sys.argv[2])})
    while engines.states()["slim"].pid is None:
        await asyncio.sleep(0.01)
    print(engines.states()["slim"].pid, flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it started."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that run."""
    return [process for process in processes if runs(process)]


def runs(process: psutil.Process) -> bool:
    """A zombie does not: it only waits for whoever is to collect it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it ended between the two questions
        return False


@shared_loop
async def test_an_engine_shows_its_metrics_and_an_unknown_one_is_not_found(engines: Engines):
    assert "vllm:num_requests_running" in await engines.get("slim").metrics()
    with pytest.raises(NotFound):
        engines.get("nobody")


@shared_loop
async def test_an_engine_whose_worker_is_killed_recovers_while_another_serves_on(
    engines: Engines,
    other: str,
    adapters: dict[str, Path],
    prompts: list[list[int]],
    until: Until,
    complete: Complete,
):
    name = "slim+all@1"
    engine = engines.get("slim")
    await engine.ensure_adapter(name, adapters["all"])
    before = await complete(engine, name, prompts[2])
    old = family(engine.status.pid or 0)
    next(process for process in old if "Worker" in process.name()).kill()

    body = {"model": "slim", "prompt": prompts[2], "max_tokens": 5}
    response = await engine.client.post("/v1/completions", json=body)
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    await until(lambda: not engines.ready("slim"), 120)
    with pytest.raises(EngineUnavailable) as refusal:
        engines.get("slim")
    assert refusal.value.retry_after is not None
    assert refusal.value.retry_after >= 1
    while not engines.ready("slim"):
        assert len(await complete(engines.get(other), other, prompts[1])) == 24
        await asyncio.sleep(1)

    assert alive(old) == []
    assert engine.status.restarts == 1
    await engine.ensure_adapter(name, adapters["all"])
    assert await complete(engines.get("slim"), name, prompts[2]) == before
    assert engines.states()[other].restarts == 0


@shared_loop
async def test_an_engine_that_is_no_longer_wanted_leaves_nothing(
    engines: Engines, other: str, slim: Path, until: Until
):
    processes = family(engines.states()[other].pid or 0)
    assert len(processes) >= 3
    await engines.reconcile({"slim": slim})
    await until(lambda: not alive(processes), 120)
    assert engines.ready("slim")
    with pytest.raises(NotFound):
        engines.get(other)


@shared_loop
async def test_a_model_that_cannot_be_served_is_tried_again_and_again_with_a_reason(
    make_settings: Callable[[], Settings], slim: Path, tmp_path: Path, until: Until
):
    shutil.copy(slim / "config.json", tmp_path)  # and no weights
    settings = make_settings()
    engines = Engines(settings)
    try:
        await engines.reconcile({"broken": tmp_path})
        await until(lambda: engines.states()["broken"].restarts == 1, 300)
        status = engines.states()["broken"]
        assert status.state == "restarting"
        assert status.failure is not None
        assert "exit code 1" in status.failure
        assert str(tmp_path) in (settings.run / "broken.log").read_text()
    finally:
        await engines.stop()
    assert list(settings.run.glob("*.sock")) == []


@shared_loop
async def test_when_the_gateway_is_killed_its_engines_die_with_it(
    slim: Path, tmp_path: Path, until: Until
):
    gateway = subprocess.Popen(
        [sys.executable, "-c", GATEWAY, str(tmp_path), str(slim)], stdout=subprocess.PIPE, text=True
    )
    assert gateway.stdout is not None
    pid = int(gateway.stdout.readline())
    await until(lambda: len(family(pid)) >= 3, 300)
    processes = family(pid)
    gateway.kill()
    gateway.wait()
    await until(lambda: not alive(processes), 120)
