"""When engines start: side by side on a CPU, one after the other where they share a GPU."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from service.engines import Engines
from service.settings import Settings

MOCK = Path(__file__).parents[2] / "benchmarks" / "mock_engine.py"
Making = Callable[..., AbstractAsyncContextManager[Engines]]


@pytest.fixture
def make_engines(
    tmp_path: Path, write_base: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Making:
    """Make two engines, each of which takes a while to start, on a CPU or a GPU."""
    bases = {name: write_base(tmp_path / name) for name in ("one", "two")}

    @asynccontextmanager
    async def make(
        on_gpu: bool, command: str = f"{MOCK} --start-seconds 2"
    ) -> AsyncIterator[Engines]:
        monkeypatch.setattr("service.engines.on_gpu", lambda: on_gpu)
        settings = Settings(home=tmp_path, engine_command=f"{sys.executable} {command}")
        engines = Engines(settings)
        await engines.reconcile(bases)
        try:
            yield engines
        finally:
            await engines.stop()

    return make


async def until_ready(engines: Engines) -> int:
    """Wait until both serve; how many children there were at most before the first one did."""
    most = 0
    async with asyncio.timeout(60):
        while not all(map(engines.ready, ("one", "two"))):
            if not any(map(engines.ready, ("one", "two"))):
                pids = [status.pid for status in engines.states().values()]
                most = max(most, sum(pid is not None for pid in pids))
            await asyncio.sleep(0.02)
    return most


async def test_on_a_cpu_engines_start_together(make_engines: Making):
    async with make_engines(on_gpu=False) as engines:
        assert await until_ready(engines) == 2


async def test_on_a_gpu_an_engine_waits_until_the_one_before_has_measured_its_memory(
    make_engines: Making,
):
    async with make_engines(on_gpu=True) as engines:
        assert await until_ready(engines) == 1


async def test_an_engine_that_cannot_start_lets_the_next_one_try(make_engines: Making):
    async with make_engines(on_gpu=True, command="-c exit(1)") as engines, asyncio.timeout(60):
        while not all(status.restarts for status in engines.states().values()):
            await asyncio.sleep(0.02)
