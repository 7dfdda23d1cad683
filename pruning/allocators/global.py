"""Global: units of all layers in one ranking per kind, with a floor in each layer.

Gupta et al., "Is Complexity Required for Neural Network Pruning? A Case Study on Global Magnitude
Pruning", IEEE CAI 2024, https://arxiv.org/abs/2209.14624, whose minimum threshold per layer is the
floor here.  Scores that mean different things in different layers are standardised first, as in
An et al., AAAI 2024, https://arxiv.org/abs/2312.11983.
"""

from pruning.allocation.ranking import keep_best, standardized
from pruning.allocation.spread import widths
from pruning.methods.allocators import GlobalParams
from pruning.plan import Widths
from pruning.registry import Problem


def allocate(problem: Problem, params: GlobalParams) -> Widths:
    """Remove the lowest KV groups, and the lowest FFN channels in bundles of `ffn_multiple`."""
    space, scores = problem.space, problem.scores
    standardize = params.normalize == "standardize" or (
        params.normalize == "auto" and not problem.comparable
    )
    ready = standardized if standardize else lambda scores_U: scores_U
    totals = space.split()
    groups = {i: ready(scores[i].kv_group) for i in space.kv_groups}
    channels = {i: ready(scores[i].ffn_channel) for i in space.ffn_channels}
    return widths(
        space,
        keep_best(groups, space.kv_groups, totals.kv_groups),
        keep_best(channels, space.ffn_channels, totals.ffn_channels),
    )
