"""What was built for compositions, on disk: bounded, and whole or not there."""

import os
from pathlib import Path

import pytest

from service.composition_store import CompositionStore
from service.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, composition_disk_bytes=250)


def build(settings: Settings, digest: str, age: float) -> Path:
    """What an engine has built: 100 bytes, so many seconds ago."""
    directory = settings.home / "compositions" / digest
    directory.mkdir(parents=True)
    (directory / "adapter_model.safetensors").write_bytes(bytes(100))
    os.utime(directory, (1e9 - age, 1e9 - age))
    return directory


def test_drafts_and_manifests_of_a_killed_server_are_gone_and_what_is_whole_is_there(
    settings: Settings,
):
    build(settings, ".draft-x", 0)
    build(settings, "a", 0)
    manifest = settings.run / "compositions" / "b.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    store = CompositionStore(settings)
    assert {path.name for path in (settings.home / "compositions").iterdir()} == {"a"}
    assert not manifest.exists()
    assert store.digests() == {"a"}
    assert store.bytes == 100


def test_the_oldest_leave_until_the_rest_fits_but_none_that_is_held(settings: Settings):
    for age, digest in enumerate("dcba"):
        build(settings, digest, age)
    store = CompositionStore(settings)
    store.trim({"a"})
    assert store.digests() == {"a", "d"}
    assert store.evictions == 2


def test_what_was_used_is_not_the_oldest(settings: Settings):
    for age, digest in enumerate("cba"):
        build(settings, digest, age)
    store = CompositionStore(settings)
    store.touch("a")
    store.touch("nothing")
    store.trim(())
    assert store.digests() == {"a", "c"}
