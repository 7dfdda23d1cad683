"""Task arithmetic on trimmed ΔW: of each only the largest entries are added.

Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015,
https://arxiv.org/abs/1506.02626, applied to ΔW; on one linear's ΔW at a time.
"""

from collections.abc import Sequence

import torch

from pruning.adapters import delta
from pruning.adapters.merging import Merged, Part
from pruning.methods.adapters import SparseParams


def merge(parts: Sequence[Part], params: SparseParams, seed: int) -> Merged:
    """Trim, add."""
    total = torch.zeros(len(parts[0].bag.b_OR), parts[0].bag.a_RI.shape[1])
    for part in parts:
        total += part.weight * delta.trim(part.bag.delta, params.density)
    return delta.merged(total, parts, params.rank, seed)
