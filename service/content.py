"""Immutable content below `home`: staged under a temporary name, then renamed to its digest."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

STAGING = ".staging-"


@contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """A new directory below `parent`, gone at the end unless it was placed.

    A lock on it, which ends with this process however that goes, tells that it is in use.
    """
    parent.mkdir(parents=True, exist_ok=True)
    directory, lock = _locked(parent)
    try:
        yield directory
    finally:
        os.close(lock)
        remove(directory)


def _locked(parent: Path) -> tuple[Path, int]:
    """A new directory that this process has locked, and the lock."""
    while True:
        directory = Path(tempfile.mkdtemp(prefix=STAGING, dir=parent))
        lock = os.open(directory, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if directory.exists():  # no sweep came between
            return directory, lock
        os.close(lock)


def copy(source: BinaryIO, target: Path) -> None:
    """Write a stream to a new file, on disk for good when this returns."""
    with target.open("xb") as stream:
        shutil.copyfileobj(source, stream, 1 << 20)
        stream.flush()
        os.fsync(stream.fileno())


def place(staged: Path, final: Path) -> None:
    """Give staged content its name; content that has the name already is the same content."""
    if not final.exists():
        staged.chmod(0o755 if staged.is_dir() else 0o644)
        staged.rename(final)


def remove(path: Path) -> None:
    """Remove a file or a directory, or nothing where there is nothing."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def size(path: Path) -> int:
    """Bytes of a file, or of all files below a directory; what goes meanwhile counts nothing."""
    found = 0
    inside = (Path(at, name) for at, _, names in os.walk(path) for name in names)
    for file in (path, *inside):
        with suppress(FileNotFoundError):
            found += file.stat().st_size if file.is_file() else 0
    return found


def quarantine(path: Path, folder: Path, reason: str) -> Path:
    """Move damaged content into a folder, with the reason in a file beside it; where it is now."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f"{path.parent.name}-{path.name}-{time.time_ns()}"
    path.rename(aside)
    aside.with_name(f"{aside.name}.reason").write_text(f"{path}: {reason}\n", encoding="utf-8")
    return aside


def sweep(parent: Path) -> None:
    """Remove what a killed process left half-made, and nothing that another one is making."""
    for path in parent.glob(f"{STAGING}*"):
        with suppress(FileNotFoundError, BlockingIOError):
            lock = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(path)
            finally:
                os.close(lock)
