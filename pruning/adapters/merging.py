"""Merging, whatever the method: linear by linear, the bags of all sources into one.

Only the atoms of one linear are in memory, and the result; no base is loaded.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pruning.adapters.algebra import Bag
from pruning.adapters.atoms import Key
from pruning.adapters.source import Source


@dataclass(frozen=True)
class Part:
    """What one source gives to a linear; `seed` is for what is random about it."""

    bag: Bag
    weight: float
    seed: int


@dataclass(frozen=True)
class Origin:
    """An atom that went into a merged one: of which part, which of its atoms, and its share."""

    part: int
    atom: int
    share: float


@dataclass(frozen=True)
class Merged:
    """The bag of a merged linear and, where a method keeps atoms apart, the origins of each."""

    bag: Bag
    origins: tuple[tuple[Origin, ...], ...] = ()


class Merge(Protocol):
    """Merges the bags of one linear; at least one part, all of the same linear."""

    def __call__(self, parts: Sequence[Part], params: Any, seed: int) -> Merged: ...


def merge_all(
    sources: Sequence[Source], weights: Mapping[str, float], method: Merge, params: Any, seed: int
) -> Iterator[tuple[Key, Merged, tuple[str, ...]]]:
    """Every linear that any source has, merged, with the names of the parts.

    Sources are taken by name, so their order in the recipe says nothing.
    """
    ordered = sorted(sources, key=lambda source: source.name)
    for key in sorted({key for source in ordered for key in source.places}):
        present = [source for source in ordered if key in source.places]
        parts = [
            Part(source.bag(key), weights[source.name], seed_of(seed, key, source.name))
            for source in present
        ]
        names = tuple(source.name for source in present)
        yield key, method(parts, params, seed_of(seed, key)), names


def seed_of(seed: int, *what: object) -> int:
    """A seed of its own for each of many random things; 63 bits."""
    digest = hashlib.sha256(repr((seed, what)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
