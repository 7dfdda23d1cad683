"""Uniform: every layer keeps the same number of KV groups and of FFN channels.

The baseline of Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for
model compression", ICLR 2018 workshop, https://arxiv.org/abs/1710.01878.  Its results are plain
configs that any tool loads.
"""

from pruning.allocation.spread import both_kinds, shifted, widths
from pruning.methods.entry import Params
from pruning.plan import Widths
from pruning.registry import Problem


def allocate(problem: Problem, params: Params) -> Widths:
    """Keep as much of every layer.

    Where widths must be even the target is missed by up to half of `ffn_multiple` channels in
    every layer; else (export per_layer) some layers keep one step more than others.
    """
    space = problem.space
    if not space.even:
        return both_kinds(space, lambda counts, n: shifted(counts, n, dict.fromkeys(counts, 0.0)))
    totals = space.split()
    num_groups = totals.kv_groups // len(space.kv_groups)
    wanted = totals.ffn_channels / len(space.ffn_channels)
    allowed = next(iter(space.ffn_channels.values()))
    width = min(allowed, key=lambda w: abs(w - wanted))
    return widths(
        space, dict.fromkeys(space.kv_groups, num_groups), dict.fromkeys(space.ffn_channels, width)
    )
