"""Content digests: the names of immutable directories (torch-free)."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tree_digest(directory: Path, files: Iterable[str] | None = None) -> str:
    """SHA-256 over the canonical JSON of {relative path: SHA-256 of the file}, as hex.

    Takes every regular file below `directory`, or only `files` (relative POSIX paths).
    """
    if files is None:
        files = (p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())
    return listing_digest({name: file_digest(directory / name) for name in files})


def listing_digest(listing: Mapping[str, str]) -> str:
    """SHA-256 over the canonical JSON of {relative path: SHA-256 of the file}, as hex."""
    canonical = json.dumps(dict(listing), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
