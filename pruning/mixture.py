"""How several sources make one text: how much each gives, and in which order (torch-free)."""

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def shares(available: Sequence[int], weights: Sequence[float], total: int) -> list[int]:
    """How many of `total` items each source gives, in proportion to its weight.

    A source that has fewer than its share gives all of them, and the others make up for it.
    Fractions go to the largest remainders, to the first on a tie.
    """
    given = [0] * len(available)
    open_sources = list(range(len(available)))
    left = min(total, sum(available))
    while open_sources:
        weight = sum(weights[i] for i in open_sources)
        short = [i for i in open_sources if available[i] * weight <= left * weights[i]]
        if not short:
            break
        for i in short:
            given[i] = available[i]
            left -= available[i]
            open_sources.remove(i)
    exact = {i: left * weights[i] / weight for i in open_sources}
    given = [int(exact[i]) if i in exact else count for i, count in enumerate(given)]
    by_remainder = sorted(exact, key=lambda i: given[i] - exact[i])
    for i in by_remainder[: left - sum(given[i] for i in exact)]:
        given[i] += 1
    return given


def interleaved(sources: Sequence[Sequence[Item]]) -> list[Item]:
    """All items, those of each source in their order and spread evenly over the whole."""
    placed = [
        ((position + 0.5) / len(source), number, item)
        for number, source in enumerate(sources)
        for position, item in enumerate(source)
    ]
    return [item for _, _, item in sorted(placed, key=lambda entry: entry[:2])]
