"""Proportional: what stays of a layer is proportional to the loss's sensitivity to it.

The coarse step of Sung et al., "ECoFLaP: Efficient Coarse-to-Fine Layer-Wise Pruning for
Vision-Language Models", ICLR 2024, https://arxiv.org/abs/2310.02998: no layer loses more than a
fraction `most`, the rest is shared out by Σ |w · ∂L/∂w|.  The paper estimates the gradient from
pairs of forward passes to save memory; the streamed calibration pass has the gradient itself.
"""

from pruning.allocation.budget import Counts
from pruning.allocation.spread import proportional, widths
from pruning.methods.allocators import ProportionalParams
from pruning.plan import Widths
from pruning.registry import Problem
from pruning.units import Kind, members


def allocate(problem: Problem, params: ProportionalParams) -> Widths:
    """Water-filling: floors first, the rest by sensitivity, none above its dense width."""
    space = problem.space
    totals = space.split()
    return widths(
        space,
        _share(problem, "kv_group", space.kv_groups, totals.kv_groups),
        _share(problem, "ffn_channel", space.ffn_channels, totals.ffn_channels),
    )


def _share(problem: Problem, kind: Kind, counts: Counts, total: float) -> dict[int, int]:
    geometry, saliency = problem.checkpoint.geometry, problem.statistics.saliency
    weights = {
        layer: sum(
            float(saliency[layer, member.linear].element_C.sum())
            for member in members(geometry, layer, kind)
        )
        for layer in counts
    }
    return proportional(counts, total, weights)
