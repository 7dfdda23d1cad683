"""Fluctuation: the variance of a unit's activations times the weights that read it (WIFV).

An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models", AAAI 2024,
https://arxiv.org/abs/2312.11983: F_j · ‖W_:,j‖², with F_j the unbiased variance of input j of
o_proj or down_proj over all calibration tokens; a head's score is the mean over its channels.
What varies little can be replaced by its mean, which bias compensation folds into a bias.
"""

from torch import Tensor

from pruning.methods import Params
from pruning.registry import LayerScores, LayerView
from pruning.units import READERS, Kind, members


def score(layer: LayerView, params: Params) -> LayerScores:
    """Weighted input fluctuation of each unit, averaged over its channels."""
    return LayerScores(_fluctuation(layer, "kv_group"), _fluctuation(layer, "ffn_channel"))


def _fluctuation(layer: LayerView, kind: Kind) -> Tensor:
    reader = READERS[kind]
    (member,) = (m for m in members(layer.geometry, layer.index, kind) if m.linear == reader)
    weight = layer.weights[reader].double()
    variance = layer.statistics.moments[layer.index, reader].variance_C
    by_channel = variance * weight.square().sum(dim=0)
    return by_channel.view(-1, member.channels).mean(dim=1)
