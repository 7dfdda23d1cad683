"""DARE before task arithmetic: drop entries of each ΔW at random, rescale, add up.

Yu et al., "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free
Lunch", ICML 2024, https://arxiv.org/abs/2311.03099; on one linear's ΔW at a time.
"""

from collections.abc import Sequence

import torch

from pruning.adapters import delta
from pruning.adapters.merging import Merged, Part
from pruning.methods.adapters import SparseParams


def merge(parts: Sequence[Part], params: SparseParams, seed: int) -> Merged:
    """Drop, rescale, add."""
    total = torch.zeros(len(parts[0].bag.b_OR), parts[0].bag.a_RI.shape[1])
    for part in parts:
        total += part.weight * delta.drop(part.bag.delta, params.density, part.seed)
    return delta.merged(total, parts, params.rank, seed)
