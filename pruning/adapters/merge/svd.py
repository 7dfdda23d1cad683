"""The best approximation of the weighted sum of the ΔW by an adapter of a given rank.

Eckart and Young, "The approximation of one matrix by another of lower rank", Psychometrika 1936,
https://doi.org/10.1007/BF02288367; from the factors, without forming the sum.
"""

from collections.abc import Sequence

from pruning.adapters import algebra
from pruning.adapters.merging import Merged, Part
from pruning.methods.adapters import RankParams


def merge(parts: Sequence[Part], params: RankParams, seed: int) -> Merged:
    """Concatenate, then keep the atoms of the largest singular values."""
    bag = algebra.cat([part.bag for part in parts], [part.weight for part in parts])
    return Merged(algebra.truncate(bag, params.rank or max(part.bag.rank for part in parts)))
