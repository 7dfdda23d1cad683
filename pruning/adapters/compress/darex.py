"""DAREx-q: drop a part of an adapter at random, and rescale by what changes its output least.

Deng et al., "DARE the Extreme: Revisiting Delta-Parameter Pruning For Fine-Tuned Models",
ICLR 2025, https://arxiv.org/abs/2410.09344.  DARE divides by the fraction that stays, 1 - drop; at
high drops another divisor q is better.  As in the paper's figure 1, q is where the last layer's
output on some rows differs least from that of the whole adapter; we look between 1 - drop and 1.
Dropping whole atoms instead of entries of ΔW is ours: the result is an adapter as it stands.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pruning.adapters import delta
from pruning.adapters.algebra import Bags, scale
from pruning.adapters.compression import Deltas, Probe
from pruning.adapters.merging import seed_of
from pruning.errors import InvalidInput
from pruning.methods.adapters import DarexParams

POINTS = 9  # of the scan, and again between the neighbours of its best


def compress(bags: Bags, params: DarexParams, seed: int, probe: Probe | None) -> Mapping[str, Bags]:
    """Drop, find q, divide by it."""
    assert probe is not None
    if params.unit == "atom":
        kept = drop_atoms(bags, params.drop, seed)
        q = divisor(_deltas(bags), _deltas(kept), 1 - params.drop, probe)
        return {"": {key: scale(bag, 1 / q) for key, bag in kept.items()}}
    survivors = drop_entries(bags, params.drop, seed)
    q = divisor(_deltas(bags), survivors, 1 - params.drop, probe)
    return {
        "": {
            key: delta.approximate(left / q, params.rank or bags[key].rank, seed_of(seed, key))
            for key, left in survivors.items()
        }
    }


def drop_atoms(bags: Bags, drop: float, seed: int) -> Bags:
    """The atoms that stay, each with probability 1 - drop, unscaled; linears without any leave.

    Raises InvalidInput when none stays.
    """
    kept = {}
    for key, bag in bags.items():
        generator = torch.Generator().manual_seed(seed_of(seed, key))
        stays_R = torch.rand(bag.rank, generator=generator) >= drop
        if stays_R.any():
            kept[key] = bag.select(stays_R.nonzero()[:, 0])
    if not kept:
        raise InvalidInput(
            "method.params.drop", f"{drop} leaves no atom of this adapter; drop less"
        )
    return kept


def drop_entries(bags: Bags, drop: float, seed: int) -> Deltas:
    """ΔW with each entry kept with probability 1 - drop, unscaled."""
    density = 1 - drop
    return {
        key: delta.drop(bag.delta, density, seed_of(seed, key)) * density
        for key, bag in bags.items()
    }


def divisor(full: Deltas, survivors: Deltas, least: float, probe: Probe) -> float:
    """The q in [least, 1] for which survivors / q gives outputs closest to those of `full`."""
    wanted = probe(full)

    def change(q: float) -> float:
        scaled = {key: left / q for key, left in survivors.items()}
        return float((probe(scaled) - wanted).abs().mean())

    grid = _between(least, 1.0)
    best = min(range(POINTS), key=lambda i: change(grid[i]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, POINTS - 1)]
    finer = _between(low, high)
    return min(finer, key=change)


def _between(low: float, high: float) -> list[float]:
    """POINTS numbers, evenly spread by ratio."""
    return [low * math.exp(math.log(high / low) * i / (POINTS - 1)) for i in range(POINTS)]


def _deltas(bags: Bags) -> dict[tuple[int, str], Tensor]:
    return {key: bag.delta for key, bag in bags.items()}
