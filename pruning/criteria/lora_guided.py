"""LoRA-guided: saliency from the gradients of a LoRA, no gradient of a base weight being known.

Zhang et al., "LoRAPrune: Structured Pruning Meets Low-Rank Parameter-Efficient Fine-Tuning",
Findings of ACL 2024, https://arxiv.org/abs/2305.18403: |ĝ ⊙ W| as in `statistics.lora`, summed over
each unit's rows or columns, divided by the norm of those sums over the units of the linear, then
added over the linears of a unit.  This is the first step of the paper's iteration, one shot.
"""

import torch
from torch import Tensor

from pruning.methods.entry import Params
from pruning.registry import LayerScores, LayerView
from pruning.scoring import by_kind, by_unit
from pruning.units import Kind, members

_TINY = 1e-8  # as in the authors' code


def score(layer: LayerView, params: Params) -> LayerScores:
    """Normalised saliency of each unit, added over its linears; no unit of measure."""
    return by_kind(layer, lambda kind: _guided(layer, kind))


def _guided(layer: LayerView, kind: Kind) -> Tensor:
    normalised = []
    for member in members(layer.geometry, layer.index, kind):
        saliency = layer.statistics.lora_saliency[layer.index, member.linear]
        unit_sums = by_unit(saliency.element_C, member).sum(dim=1)
        normalised.append(unit_sums / (unit_sums.norm() + _TINY))
    return torch.stack(normalised).sum(dim=0)
