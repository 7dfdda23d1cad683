"""The nearest adapter of a given rank, or the smallest that keeps a share of ΔW's energy.

Eckart and Young, "The approximation of one matrix by another of lower rank", Psychometrika 1936,
https://doi.org/10.1007/BF02288367; from the factors, without forming ΔW.
"""

from collections.abc import Mapping

import torch

from pruning.adapters import algebra
from pruning.adapters.algebra import Bag, Bags
from pruning.adapters.compression import Probe
from pruning.methods.adapters import TruncationParams

ENERGY = 0.95  # where neither a rank nor an energy is given


def compress(
    bags: Bags, params: TruncationParams, seed: int, probe: Probe | None
) -> Mapping[str, Bags]:
    """Truncate every linear."""
    return {"": {key: _truncate(bag, params) for key, bag in bags.items()}}


def _truncate(bag: Bag, params: TruncationParams) -> Bag:
    if params.rank is not None:
        return algebra.truncate(bag, params.rank)
    energy = algebra.spectrum(bag).double().square()
    if not energy.any():
        return algebra.truncate(bag, 1)
    wanted = (params.energy or ENERGY) * energy.sum()
    rank = int(torch.searchsorted(energy.cumsum(0), wanted * (1 - 1e-12))) + 1
    return algebra.truncate(bag, rank)
