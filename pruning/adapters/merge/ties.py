"""TIES: trim each ΔW to its largest entries, elect a sign per entry, average those that have it.

Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", NeurIPS 2023,
https://arxiv.org/abs/2306.01708; on one linear's ΔW at a time, then back to atoms.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor

from pruning.adapters import delta
from pruning.adapters.merging import Merged, Part
from pruning.methods.adapters import SparseParams


def merge(parts: Sequence[Part], params: SparseParams, seed: int) -> Merged:
    """Trim, elect, average."""

    def trimmed() -> Iterator[Tensor]:
        for part in parts:
            yield part.weight * delta.trim(part.bag.delta, params.density)

    return delta.merged(delta.disjoint(trimmed), parts, params.rank, seed)
