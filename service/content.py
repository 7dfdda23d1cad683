"""Immutable content below `home`: staged under a temporary name, then renamed to its digest."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

STAGING = ".staging-"
_ABANDONED_SECONDS = 24 * 3600.0


@contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """A new directory below `parent`, gone at the end unless it was placed."""
    parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix=STAGING, dir=parent))
    try:
        yield directory
    finally:
        remove(directory)


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
    """Bytes of a file, or of all files below a directory; 0 where there is nothing."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.is_file() else 0


def quarantine(path: Path, folder: Path, reason: str) -> Path:
    """Move damaged content into a folder, with the reason in a file beside it; where it is now."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f"{path.parent.name}-{path.name}-{time.time_ns()}"
    path.rename(aside)
    aside.with_name(f"{aside.name}.reason").write_text(f"{path}: {reason}\n", encoding="utf-8")
    return aside


def sweep(parent: Path) -> None:
    """Remove what a killed process left half-made; what is being made elsewhere is younger."""
    if parent.is_dir():
        for path in parent.glob(f"{STAGING}*"):
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                remove(path)
