"""DARE before TIES: drop entries of each ΔW at random, rescale, elect signs, average.

Yu et al., "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free
Lunch", ICML 2024, https://arxiv.org/abs/2311.03099; on one linear's ΔW at a time.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor

from pruning.adapters import delta
from pruning.adapters.merging import Merged, Part
from pruning.methods.adapters import SparseParams


def merge(parts: Sequence[Part], params: SparseParams, seed: int) -> Merged:
    """Drop, rescale, elect, average."""

    def dropped() -> Iterator[Tensor]:
        for part in parts:
            yield part.weight * delta.drop(part.bag.delta, params.density, part.seed)

    return delta.merged(delta.disjoint(dropped), parts, params.rank, seed)
