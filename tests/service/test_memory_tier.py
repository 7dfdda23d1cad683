"""Adapters in host memory: bounded whatever happens, never half there, gone with the server."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from service.memory_tier import MemoryTier
from service.settings import Settings

SIZE = 1000
ROOM = 3 * SIZE + SIZE // 2  # three adapters fit

Adapter = Callable[[str], Path]


@pytest.fixture
def tier(make: Callable[[], MemoryTier]) -> MemoryTier:
    return make()


@pytest.fixture
def make(settings: Settings) -> Callable[[], MemoryTier]:
    """Make a tier with room for three adapters."""
    return lambda: MemoryTier(settings.model_copy(update={"composition_memory_bytes": ROOM}))


@pytest.fixture
def adapter(tmp_path: Path) -> Adapter:
    """Make an adapter's directory; its files have 1000 bytes."""

    def make(digest: str) -> Path:
        directory = tmp_path / "disk" / digest
        if not directory.exists():
            directory.mkdir(parents=True)
            (directory / "adapter_config.json").write_bytes(digest.encode().ljust(100))
            (directory / "adapter_model.safetensors").write_bytes(digest.encode().ljust(900))
        return directory

    return make


def nothing_held() -> set[str]:
    return set()


def stored(settings: Settings) -> int:
    """Bytes of all files below the folder on tmpfs, drafts included."""
    files = [path for path in settings.composition_memory.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files)


async def test_an_adapter_is_found_with_its_files_once_it_is_added(
    tier: MemoryTier, adapter: Adapter
):
    assert tier.find("a") is None
    await tier.add("a", adapter("a"), nothing_held)
    found = tier.find("a")
    assert found is not None
    assert {path.name: path.read_bytes() for path in found.iterdir()} == {
        path.name: path.read_bytes() for path in adapter("a").iterdir()
    }
    assert tier.bytes == SIZE


async def test_the_least_recently_used_leaves_first(tier: MemoryTier, adapter: Adapter):
    for digest in "abc":
        await tier.add(digest, adapter(digest), nothing_held)
    tier.find("a")
    await tier.add("d", adapter("d"), nothing_held)
    assert [digest for digest in "abcd" if tier.find(digest)] == ["a", "c", "d"]
    assert tier.evictions == 1


async def test_what_an_engine_reads_stays_and_without_room_nobody_leaves(
    tier: MemoryTier, adapter: Adapter
):
    for digest in "abc":
        await tier.add(digest, adapter(digest), nothing_held)
    await tier.add("d", adapter("d"), lambda: {"a"})
    assert [digest for digest in "abcd" if tier.find(digest)] == ["a", "c", "d"]
    await tier.add("e", adapter("e"), lambda: {"a", "c", "d"})
    assert tier.find("e") is None
    assert tier.evictions == 1


async def test_churn_never_takes_more_than_its_bytes(
    tier: MemoryTier, adapter: Adapter, settings: Settings
):
    generator = random.Random(0)
    most = 0

    async def client() -> None:
        nonlocal most
        for _ in range(25):
            digest = generator.choice("abcdefgh")
            held = set(generator.sample("abcdefgh", 2))
            await tier.add(digest, adapter(digest), lambda held=held: held)
            if (found := tier.find(digest)) is not None:
                assert (found / "adapter_config.json").read_bytes() == digest.encode().ljust(100)
            if generator.random() < 0.1:
                tier.remove(digest)
            most = max(most, tier.bytes, stored(settings))

    await asyncio.gather(*(client() for _ in range(8)))
    assert SIZE < most <= ROOM
    assert tier.bytes == stored(settings)


async def test_an_adapter_that_cannot_be_read_is_not_there_and_takes_nothing(
    tier: MemoryTier, tmp_path: Path, settings: Settings
):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").symlink_to(tmp_path / "nowhere")
    await tier.add("a", broken, nothing_held)
    assert tier.find("a") is None
    assert tier.bytes == stored(settings) == 0


async def test_leftovers_of_a_killed_server_are_removed_at_the_start(
    make: Callable[[], MemoryTier], adapter: Adapter, settings: Settings
):
    await make().add("a", adapter("a"), nothing_held)  # and it is killed
    assert stored(settings) == SIZE
    again = make()
    assert stored(settings) == 0
    assert again.find("a") is None


async def test_a_server_that_stops_gives_the_memory_back(
    tier: MemoryTier, adapter: Adapter, settings: Settings
):
    adding = asyncio.create_task(tier.add("a", adapter("a"), nothing_held))
    await asyncio.sleep(0)
    await tier.close()
    await adding
    await tier.add("b", adapter("b"), nothing_held)
    assert list(settings.composition_memory.iterdir()) == []


@pytest.mark.parametrize("change", [{"composition_memory_bytes": 0}, {"composition_memory": "/no"}])
async def test_without_room_or_a_folder_nothing_is_kept(
    settings: Settings, adapter: Adapter, change: dict[str, object]
):
    tier = MemoryTier(
        settings.model_copy(
            update={k: Path(v) if isinstance(v, str) else v for k, v in change.items()}
        )
    )
    await tier.add("a", adapter("a"), nothing_held)
    assert tier.find("a") is None
    assert stored(settings) == 0


async def test_a_folder_that_belongs_to_somebody_else_is_left_alone(
    settings: Settings, make: Callable[[], MemoryTier], adapter: Adapter, tmp_path: Path
):
    await make().add("a", adapter("a"), nothing_held)
    (folder,) = settings.composition_memory.iterdir()
    elsewhere = folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(elsewhere)
    tier = make()
    await tier.add("b", adapter("b"), nothing_held)
    assert tier.find("b") is None
    assert [path.name for path in elsewhere.iterdir()] == ["a"]
