"""ECoFLaP: Wanda ranks the units of a block, zeroth-order sensitivity weighs the blocks.

Sung et al., "ECoFLaP: Efficient Coarse-to-Fine Layer-Wise Pruning for Vision-Language Models",
ICLR 2024, https://arxiv.org/abs/2310.02998.  Coarse: |θ| · |ĝ|, with ĝ of a matrix from two
forwards per perturbation and no backward, averaged over the weights of a block.  Fine: Wanda.  A
unit's score is its Wanda score relative to the block's mean, times the block's coarse score, so
that a global ranking spends the budget as the coarse scores say; with allocator uniform it is
Wanda.  The paper turns coarse scores into sparsities; one ranking in their place is ours.
"""

import torch
from torch import Tensor

from pruning.criteria import wanda
from pruning.methods.entry import Params
from pruning.registry import LayerScores, LayerView
from pruning.scoring import by_kind
from pruning.units import Kind, members


def score(layer: LayerView, params: Params) -> LayerScores:
    """Share of the block's sensitivity, in nats per unit of relative weight change."""
    fine = wanda.score(layer, params)
    return by_kind(layer, lambda kind: _relative(getattr(fine, kind)) * _sensitivity(layer, kind))


def _relative(scores: Tensor) -> Tensor:
    return (scores / scores.mean()).nan_to_num(0)


def _sensitivity(layer: LayerView, kind: Kind) -> Tensor:
    """|θ| · |ĝ|, averaged over the weights of a block."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for member in members(layer.geometry, layer.index, kind):
        slope = layer.statistics.zeroth_order[layer.index, member.linear]
        weight = layer.weights[member.linear]
        total = total + weight.double().abs().sum() * slope.total / slope.noises
        count += weight.numel()
    return total / count
