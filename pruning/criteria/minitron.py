"""Minitron: the norm of a unit's activations, whatever reads them.

Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation",
NeurIPS 2024, https://arxiv.org/abs/2407.14679: activations are aggregated by the mean of their
absolute values over the tokens of a sequence, then by the L2 norm over sequences; a head by the L2
norm over its channels, a KV group over those of all its query heads.
"""

from torch import Tensor

from pruning.methods.entry import Params
from pruning.registry import LayerScores, LayerView
from pruning.scoring import by_kind, by_unit, reader
from pruning.units import Kind


def score(layer: LayerView, params: Params) -> LayerScores:
    """Aggregated activation of each unit, in units of the reader's input."""
    return by_kind(layer, lambda kind: _activation(layer, kind))


def _activation(layer: LayerView, kind: Kind) -> Tensor:
    member = reader(layer, kind)
    means = layer.statistics.absolute_means[layer.index, member.linear]
    return by_unit(means.squares_C, member).sum(dim=1).sqrt()
