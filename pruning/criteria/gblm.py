"""GBLM: weights times the norm of their inputs, blended with the norm of their gradients.

Das et al., "Beyond Size: How Gradients Shape Pruning Decisions in Large Language Models",
arXiv 2023, https://arxiv.org/abs/2311.04902: |W_ij| · (‖X_j‖ + α · ‖G_ij‖), the norm of G over the
gradients of single sequences.  Here the sum over all weights of a unit's rows and columns.
Activations and gradients are on scales of their own, and with the paper's α = 100 the second term
can vanish; ours makes the two sums equal over each linear and blends them at α, so that α = 1 gives
both the same weight in every model.
"""

from torch import Tensor

from pruning.methods.criteria import GblmParams
from pruning.registry import LayerScores, LayerView
from pruning.scoring import by_kind, input_rms, summed
from pruning.units import Member


def score(layer: LayerView, params: GblmParams) -> LayerScores:
    """Blended saliency of each unit, in units of the hidden state."""

    def channels(member: Member) -> Tensor:
        weight = layer.weights[member.linear].double().abs()
        entrance = layer.geometry.architecture.block_of(member.linear).entrance
        rms = input_rms(layer, member.linear if member.axis else entrance)
        read_C = (weight * rms).sum(dim=1 - member.axis)
        gradients = layer.statistics.sequence_gradients[layer.index, member.linear]
        steep_C = gradients.l1_C if params.norm == "l1" else gradients.l2_C
        scale = (read_C.sum() / steep_C.sum()).nan_to_num(0, posinf=0)
        return read_C + params.alpha * scale * steep_C

    return by_kind(layer, lambda kind: summed(layer, kind, channels))
