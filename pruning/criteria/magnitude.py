"""Magnitude: the norm of all weights of a unit.

Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015,
https://arxiv.org/abs/1506.02626, with a unit in the place of a weight.
"""

import torch
from torch import Tensor

from pruning.methods.criteria import MagnitudeParams
from pruning.registry import LayerScores, LayerView
from pruning.scoring import by_kind, by_unit
from pruning.units import Kind, members


def score(layer: LayerView, params: MagnitudeParams) -> LayerScores:
    """L1 or L2 norm over all rows and columns of each unit."""
    return by_kind(layer, lambda kind: _norm(layer, kind, params))


def _norm(layer: LayerView, kind: Kind, params: MagnitudeParams) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for member in members(layer.geometry, layer.index, kind):
        weight = layer.weights[member.linear].double()
        size = weight.abs() if params.norm == "l1" else weight.square()
        total = total + by_unit(size.sum(dim=1 - member.axis), member).sum(dim=1)
    return total if params.norm == "l1" else total.sqrt()
