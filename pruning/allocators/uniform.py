"""Uniform: every layer keeps the same number of KV groups and of FFN channels.

The baseline of Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for
model compression", ICLR 2018 workshop, https://arxiv.org/abs/1710.01878.  Its results are plain
configs that any tool loads.
"""

from pruning.allocation.spread import even, level
from pruning.methods.entry import Params
from pruning.plan import Widths
from pruning.registry import Problem


def allocate(problem: Problem, params: Params) -> Widths:
    """Keep as much of every layer.

    Where widths must be even the target is missed by up to half of `ffn_multiple` channels in
    every layer; else (export per_layer) some layers keep one step more than others.
    """
    return even(problem.space) if problem.space.even else level(problem.space)
