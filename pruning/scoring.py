"""From channels to units: what criteria share when they add up a layer's members."""

# Shape suffixes:  O = outputs, I = inputs of a linear,  C = channels along a unit axis,
#                  U = units.

from collections.abc import Callable

import torch
from torch import Tensor

from pruning.registry import LayerScores, LayerView
from pruning.units import Kind, Member, members


def by_kind(layer: LayerView, score: Callable[[Kind], Tensor]) -> LayerScores:
    """The scores of all kinds that are asked for."""
    return LayerScores(**{kind: score(kind) for kind in layer.kinds})


def summed(layer: LayerView, kind: Kind, channels: Callable[[Member], Tensor]) -> Tensor:
    """Per unit, the sum over its channels of `channels(member)` (C,) for all members; (U,)."""
    total_U = torch.zeros((), dtype=torch.float64)
    for member in members(layer.geometry, layer.index, kind):
        total_U = total_U + by_unit(channels(member), member).sum(dim=1)
    return total_U


def reader(layer: LayerView, kind: Kind) -> Member:
    """The member whose inputs are the units' activations: o_proj or down_proj."""
    return members(layer.geometry, layer.index, kind)[-1]


def by_unit(channels_C: Tensor, member: Member) -> Tensor:
    """Channels in float64, unit by unit; (U, channels of a unit), further axes behind."""
    rest = channels_C.shape[1:]
    parts = [
        channels_C[span.start : span.start + member.units * span.channels]
        .double()
        .reshape(member.units, span.channels, *rest)
        for span in member.spans
    ]
    return torch.cat(parts, dim=1)


def column_sums(layer: LayerView, linear: str, exponent: int = 1) -> Tensor:
    """Σ|W|^exponent over the outputs of a linear, in float64; (I,)."""
    return layer.weights[linear].double().abs().pow(exponent).sum(dim=0)


def input_rms(layer: LayerView, linear: str) -> Tensor:
    """Root mean square of each input of a linear over the calibration tokens, in float64; (I,)."""
    return layer.statistics.moments[layer.index, linear].mean_square_C.sqrt()
