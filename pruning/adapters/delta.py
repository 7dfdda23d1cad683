"""Methods that are defined on the entries of ΔW: what they share, and the way back to atoms.

One linear's ΔW at a time is formed for them, never that of a whole adapter.
"""

# Shape suffixes:  O = outputs,  I = inputs,  S = columns of the random sketch.

from collections.abc import Callable, Iterator, Sequence
from functools import reduce

import torch
from torch import Tensor

from pruning.adapters import algebra
from pruning.adapters.algebra import Bag
from pruning.adapters.merging import Merged, Part

OVERSAMPLING, POWER_STEPS = 16, 6

Deltas = Callable[[], Iterator[Tensor]]  # the weighted ΔW of one part after the other, again


def trim(delta: Tensor, density: float) -> Tensor:
    """The `density` of the entries that are largest in absolute value; the others zero."""
    count = int(density * delta.numel())
    kept = delta.abs().flatten().topk(count).indices
    trimmed = torch.zeros_like(delta).flatten()
    trimmed[kept] = delta.flatten()[kept]
    return trimmed.view_as(delta)


def drop(delta: Tensor, density: float, seed: int) -> Tensor:
    """Each entry stays with probability `density`, then divided by it, or becomes zero."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(delta.shape, generator=generator) < density
    return delta * kept / density


def disjoint(deltas: Deltas) -> Tensor:
    """The mean of each entry over those that have its majority sign, weighed by size (TIES)."""
    positive = reduce(torch.add, deltas()) >= 0
    total, count = torch.zeros(positive.shape), torch.zeros(positive.shape)
    for delta in deltas():
        agrees = (delta > 0) & positive | (delta < 0) & ~positive
        total += delta * agrees
        count += agrees
    return total / count.clamp(min=1)


def approximate(delta: Tensor, rank: int, seed: int) -> Bag:
    """The leading `rank` singular atoms of a dense matrix, from a random sketch.

    Halko, Martinsson and Tropp, "Finding Structure with Randomness", SIAM Review 2011,
    https://arxiv.org/abs/0909.4061, algorithm 4.4.
    """
    generator = torch.Generator().manual_seed(seed)
    size = min(rank + OVERSAMPLING, *delta.shape)
    basis_OS = delta @ torch.randn(delta.shape[1], size, generator=generator)
    for _ in range(POWER_STEPS):
        basis_OS = torch.linalg.qr(basis_OS).Q
        basis_OS = delta @ torch.linalg.qr(delta.T @ basis_OS).Q
    basis_OS = torch.linalg.qr(basis_OS).Q
    return algebra.truncate(Bag(basis_OS.T @ delta, basis_OS), rank)


def merged(delta: Tensor, parts: Sequence[Part], rank: int | None, seed: int) -> Merged:
    """A merged ΔW as atoms: `rank` of them, or as many as the largest part has."""
    return Merged(approximate(delta, rank or max(part.bag.rank for part in parts), seed))
