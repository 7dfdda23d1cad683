"""Taylor: how much the loss changes, to first order, when a unit is set to zero.

Ma et al., "LLM-Pruner: On the Structural Pruning of Large Language Models", NeurIPS 2023,
https://arxiv.org/abs/2305.11627: s = w · ∂L/∂w of every weight of the coupled rows and columns.
Variant "element" takes |s| and then sums; "vector" sums each row or column and then takes |·|.
Biases carry no score, as in the authors' code.
"""

import torch
from torch import Tensor

from pruning.methods import TaylorParams
from pruning.registry import LayerScores, LayerView
from pruning.units import Kind, members


def score(layer: LayerView, params: TaylorParams) -> LayerScores:
    """Summed saliency of each unit's rows and columns, in units of the loss (nats per token)."""
    return LayerScores(
        _saliency(layer, "kv_group", params), _saliency(layer, "ffn_channel", params)
    )


def _saliency(layer: LayerView, kind: Kind, params: TaylorParams) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for member in members(layer.geometry, layer.index, kind):
        saliency = layer.statistics.saliency[layer.index, member.linear]
        by_channel = saliency.element_C if params.variant == "element" else saliency.vector_C.abs()
        total = total + by_channel.view(-1, member.channels).sum(dim=1)
    return total
