"""How alike adapters are: the cosine of the angle between their ΔW, from the factors alone.

⟨ΔW, ΔW'⟩ = tr(AᵀBᵀB'A') is the sum of (B'ᵀB)∘(A'Aᵀ): two products of atoms with atoms, so
nothing of the size of ΔW is ever formed.  Over all linears the products add up, one that an adapter
does not have counting as zero.
"""

# Shape suffixes:  N = adapters,  R = atoms of one adapter,  S = atoms of another.

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pruning.adapters.algebra import Bag
from pruning.adapters.source import Source
from pruning.progress import Progress


def inner(one: Bag, other: Bag) -> float:
    """⟨ΔW, ΔW'⟩ of two bags on one linear, in float64."""
    a_SR = other.a_RI.double() @ one.a_RI.double().T
    b_SR = other.b_OR.double().T @ one.b_OR.double()
    return float((a_SR * b_SR).sum())


def products(sources: Sequence[Source], progress: Progress) -> Tensor:
    """⟨ΔW, ΔW'⟩ over all linears, for every pair; (N, N), float64.

    One linear of all adapters is in memory at a time.
    """
    gram_NN = torch.zeros(len(sources), len(sources), dtype=torch.float64)
    keys = sorted({key for source in sources for key in source.places})
    for done, key in enumerate(keys):
        progress(done / len(keys), f"layer {key[0]}, {key[1]}")
        bags = {i: source.bag(key) for i, source in enumerate(sources) if key in source.places}
        for i, one in bags.items():
            for j, other in bags.items():
                if i <= j:
                    gram_NN[i, j] += inner(one, other)
    return gram_NN + gram_NN.triu(1).T


def cosines(gram_NN: Tensor) -> list[list[float | None]]:
    """The cosine of each pair; None where one of both adds nothing."""
    lengths = [math.sqrt(max(0.0, float(value))) for value in gram_NN.diagonal()]

    def cosine(i: int, j: int) -> float | None:
        length = lengths[i] * lengths[j]
        return round(max(-1.0, min(1.0, float(gram_NN[i, j]) / length)), 6) if length else None

    return [[cosine(i, j) for j in range(len(lengths))] for i in range(len(lengths))]
