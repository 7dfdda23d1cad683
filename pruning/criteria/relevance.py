"""Relevance: how much of the explained logits layer-wise relevance propagation credits to a unit.

Yeom et al., "Pruning by Explaining: A Novel Criterion for Deep Neural Network Pruning",
Pattern Recognition 2021, https://arxiv.org/abs/1912.08881: Σ|R| over the activations of a unit,
here at the inputs of o_proj and down_proj, with the rules for transformers of AttnLRP as in
`statistics.relevance`.  The paper's claim is for few calibration samples and no fine-tuning.
"""

from torch import Tensor

from pruning.methods.entry import Params
from pruning.registry import LayerScores, LayerView
from pruning.scoring import by_kind, by_unit, reader
from pruning.units import Kind


def score(layer: LayerView, params: Params) -> LayerScores:
    """Absolute relevance of each unit per target token, in units of the logit."""
    return by_kind(layer, lambda kind: _credited(layer, kind))


def _credited(layer: LayerView, kind: Kind) -> Tensor:
    member = reader(layer, kind)
    relevance = layer.statistics.relevance[layer.index, member.linear]
    return by_unit(relevance.total_C / relevance.targets, member).sum(dim=1)
