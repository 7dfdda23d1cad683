"""State that outlives a kill: directories named by the digest of what they depend on."""

import shutil
from importlib.metadata import version
from pathlib import Path

from pruning.digest import listing_digest

_PACKAGES = ("graftwork", "torch")  # another version may compute other bytes


def kept_in(state: Path, **depends: str) -> Path:
    """The directory below `state` for what depends on these; others are removed."""
    kept = state / listing_digest(depends | {name: version(name) for name in _PACKAGES})
    for other in state.glob("*"):
        if other != kept:
            shutil.rmtree(other)
    kept.mkdir(parents=True, exist_ok=True)
    return kept
