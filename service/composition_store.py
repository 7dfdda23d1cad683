"""What was built for compositions, on disk under their digests, the oldest going first."""

import contextlib
import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path

from service.settings import Settings


class CompositionStore:
    """Directories of plain adapters that engines built, and the manifests that say how."""

    def __init__(self, settings: Settings):
        self._built = settings.home.absolute() / "compositions"
        self._manifests = settings.run.absolute() / "compositions"
        self._limit = settings.composition_disk_bytes
        self.evictions = 0
        shutil.rmtree(self._manifests, ignore_errors=True)  # no engine of ours runs yet
        for draft in self._built.glob(".draft-*"):
            shutil.rmtree(draft, ignore_errors=True)

    def manifest(self, engine_name: str) -> Path:
        """Where the manifest of a composition lies."""
        return self._manifests / (re.sub(r"[^a-zA-Z0-9._-]", "_", engine_name) + ".json")

    def directory(self, digest: str) -> Path:
        """Where the adapter that was built for a composition lies; whole, or not there."""
        return self._built / digest

    def has(self, digest: str) -> bool:
        return self.directory(digest).is_dir()

    def digests(self) -> set[str]:
        """Of all that were built."""
        return {path.name for path in self._adapters()}

    def remove(self, digest: str) -> None:
        """Forget what was built for a composition."""
        shutil.rmtree(self.directory(digest), ignore_errors=True)

    def touch(self, digest: str) -> None:
        """Count an adapter as used: the oldest leave first."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.directory(digest))

    @property
    def bytes(self) -> int:
        """What all of it takes."""
        return sum(map(_size, self._adapters()))

    def trim(self, held: Collection[str]) -> None:
        """Remove the oldest until the rest fits, but none whose digest an engine holds."""
        adapters = sorted(self._adapters(), key=lambda path: path.stat().st_mtime)
        excess = sum(map(_size, adapters)) - self._limit
        for path in adapters:
            if excess <= 0:
                return
            if path.name not in held:
                excess -= _size(path)
                shutil.rmtree(path, ignore_errors=True)
                self.evictions += 1

    def _adapters(self) -> list[Path]:
        if not self._built.is_dir():
            return []
        return [path for path in self._built.iterdir() if not path.name.startswith(".")]


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())
