"""Adapters in host memory, by digest, between what engines hold and what lies on disk.

A folder on tmpfs has what was loaded lately: the parts of sums, and what was built for other
compositions.  An engine reads from there what it let go and is asked for again.
"""

import asyncio
import hashlib
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Collection
from pathlib import Path

import anyio.to_thread
import structlog

from service.settings import Settings

_DRAFT = ".draft-"
_log = structlog.get_logger("memory")


class MemoryTier:
    """Never more bytes than the settings allow, never half an adapter, nothing left behind.

    For one event loop: the books are kept on it, only files are copied elsewhere.
    """

    def __init__(self, settings: Settings):
        self._limit = settings.composition_memory_bytes
        self._folder: Path | None = None
        self._made = False
        self._sizes: OrderedDict[str, int] = OrderedDict()  # least recently used first
        self._copying: str | None = None
        self._one_at_a_time = asyncio.Lock()
        self.evictions = 0
        folder = settings.composition_memory / _name(settings.home)
        shutil.rmtree(folder, ignore_errors=True)  # what a killed process left
        if self._limit and settings.composition_memory.is_dir():
            self._folder = folder  # made when there is something to put into it

    @property
    def bytes(self) -> int:
        """What lies there, and what is being copied there."""
        return sum(self._sizes.values())

    def find(self, digest: str) -> Path | None:
        """The directory of an adapter, or None where it is not there, or not whole yet."""
        if self._folder is None or digest not in self._sizes or digest == self._copying:
            return None
        self._sizes.move_to_end(digest)
        return self._folder / digest

    async def add(self, digest: str, source: Path, held: Callable[[], Collection[str]]) -> None:
        """Copy an adapter here if there is room for it beside those that are `held` by then.

        Others leave for it, the least recently used first.  An adapter that cannot be read, or a
        folder that is full, is no error: there is the disk.
        """
        async with self._one_at_a_time:
            size = await anyio.to_thread.run_sync(_size, source)
            if size is None or digest in self._sizes or not self._has_folder():
                return
            assert self._folder is not None
            if not self._make_room(size, held()):
                return
            self._sizes[digest], self._copying = size, digest
            draft = self._folder / f"{_DRAFT}{digest}"
            try:
                await anyio.to_thread.run_sync(shutil.copytree, source, draft)
                if digest in self._sizes:  # not removed meanwhile
                    draft.rename(draft.with_name(digest))
            except OSError as error:
                _log.warning("an adapter is not kept in memory", digest=digest, error=str(error))
                self._sizes.pop(digest, None)
            finally:
                self._copying = None
                shutil.rmtree(draft, ignore_errors=True)

    def remove(self, digest: str) -> None:
        """Free what an adapter takes."""
        if self._folder is not None and self._sizes.pop(digest, None) is not None:
            shutil.rmtree(self._folder / digest, ignore_errors=True)

    async def close(self) -> None:
        """Give all of the memory back; nothing is added after that."""
        folder, self._folder = self._folder, None
        self._sizes.clear()
        async with self._one_at_a_time:
            if folder is not None and self._made:
                shutil.rmtree(folder, ignore_errors=True)

    def _has_folder(self) -> bool:
        """Whether there is a folder of our own; it is made now unless it is there."""
        if self._folder is None or self._made:
            return self._folder is not None
        try:
            self._folder.mkdir(mode=0o700)
        except OSError as error:  # somebody else's, or a link
            _log.warning("nothing is kept in memory", folder=str(self._folder), error=str(error))
            self._folder = None
            return False
        self._made = True
        free = shutil.disk_usage(self._folder).free
        self._limit = min(self._limit, free // 2)  # engines need some
        return True

    def _make_room(self, size: int, held: Collection[str]) -> bool:
        """Let others go until `size` fits; where it cannot, nobody leaves."""
        leaving, left = [], self.bytes
        for digest in (d for d in self._sizes if d not in held):
            if left + size <= self._limit:
                break
            leaving.append(digest)
            left -= self._sizes[digest]
        if left + size > self._limit:
            return False
        for digest in leaving:
            self.remove(digest)
        self.evictions += len(leaving)
        return True


def _name(home: Path) -> str:
    """A folder's name for this home alone."""
    digest = hashlib.sha256(os.fsencode(home.absolute())).hexdigest()
    return f"graftwork-{os.getuid()}-{digest[:16]}"


def _size(directory: Path) -> int | None:
    """Bytes of all files; None where they cannot be read."""
    try:
        return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    except OSError:
        return None
