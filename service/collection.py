"""Garbage: content that nothing refers to, and work that nobody goes on with."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pruning import artifacts
from service import content
from service.catalog import Catalog
from service.jobs import Jobs
from service.settings import Settings


@dataclass(frozen=True)
class Garbage:
    """Something below `home` that goes."""

    path: Path
    bytes: int
    reason: str


class Collector:
    """Removes what nothing refers to: no row of the catalog, and no job that has not ended."""

    def __init__(self, settings: Settings, catalog: Catalog, jobs: Jobs, dry_run: bool = False):
        self._settings = settings
        self._catalog = catalog
        self._jobs = jobs
        self._dry_run = dry_run

    def collect(self, seconds: float) -> Iterator[Garbage]:
        """Remove everything that may go, and tell of it; drafts when they are so many seconds old.

        May run beside gateways and workers.
        """
        yield from self._artifacts()
        for folder in (self._settings.adapters, self._settings.files):
            yield from self._unreferenced(folder, "nothing refers to it")
        yield from self._abandoned(seconds)

    def _artifacts(self) -> Iterator[Garbage]:
        # A job's artifact is known to the catalog, or its job has not ended, or it is not there
        # yet: while we hold the store no other can come.
        with artifacts.collecting(self._settings.artifacts):
            yield from self._unreferenced(self._settings.artifacts, "no model is made of it")

    def _unreferenced(self, folder: Path, reason: str) -> Iterator[Garbage]:
        for path in _entries(folder):
            kept = self._catalog.refers_to(path) or artifacts.stands_alone(path)
            if not kept and path.name not in self._jobs.in_use():
                found = Garbage(path, content.size(path), reason)
                if self._dry_run or self._catalog.release(path, content.remove):
                    yield found

    def _abandoned(self, seconds: float) -> Iterator[Garbage]:
        for path in _entries(self._settings.jobs):
            if path.is_dir() and _age(path) > seconds and path.name not in self._jobs.in_use():
                yield self._removed(path, "its job has ended")
        for folder in (self._settings.adapters, self._settings.files):
            for path in folder.glob(f"{content.STAGING}*"):
                if _age(path) > seconds:
                    yield self._removed(path, "an upload that was cut off")

    def _removed(self, path: Path, reason: str) -> Garbage:
        found = Garbage(path, content.size(path), reason)
        if not self._dry_run:
            content.remove(path)
        return found


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.absolute().glob("[!.]*"))


def _age(path: Path) -> float:
    """Seconds since anything in a directory was touched, itself included; 0 if that goes."""
    try:
        return time.time() - max(one.stat().st_mtime for one in (path, *path.rglob("*")))
    except FileNotFoundError:
        return 0.0
