"""Fluctuation: the variance of a unit's activations times the weights that read it (WIFV).

An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models", AAAI 2024,
https://arxiv.org/abs/2312.11983: F_j · ‖W_:,j‖², with F_j the unbiased variance of input j of
o_proj or down_proj over all calibration tokens; a head's score is the mean over its channels.
What varies little can be replaced by its mean, which bias compensation folds into a bias.

Variant "released" is what the authors' code computes: F as in `statistics.fluctuation`, the score
of attention channels squared once more, channels standardised within the layer before the mean
over a head.  Rank it with allocator global and `normalize: none` to have their ranking whole.
"""

from torch import Tensor

from pruning.methods.criteria import FluctuationParams
from pruning.registry import LayerScores, LayerView
from pruning.scoring import by_kind, by_unit, column_sums, reader
from pruning.units import Kind


def score(layer: LayerView, params: FluctuationParams) -> LayerScores:
    """Weighted input fluctuation of each unit, averaged over its channels."""
    weigh = _fixed if params.variant == "fixed" else _released
    return by_kind(layer, lambda kind: weigh(layer, kind))


def _fixed(layer: LayerView, kind: Kind) -> Tensor:
    member = reader(layer, kind)
    variance = layer.statistics.moments[layer.index, member.linear].variance_C
    return by_unit(variance * column_sums(layer, member.linear, 2), member).mean(dim=1)


def _released(layer: LayerView, kind: Kind) -> Tensor:
    member = reader(layer, kind)
    released = layer.statistics.released_fluctuation[layer.index, member.linear]
    by_channel = released.fluctuation_C * column_sums(layer, member.linear, 2)
    if kind != "ffn_channel":
        by_channel = by_channel.square()
    deviation = by_channel.std()
    centred = by_channel - by_channel.mean()
    standard = centred / deviation if deviation > 0 else centred
    return by_unit(standard, member).mean(dim=1)
