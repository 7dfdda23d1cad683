"""Standardized: KV groups and FFN channels of all layers in one ranking, weighed by parameters.

The adaptive search AL-AM of An et al., "Fluctuation-based Adaptive Structured Pruning for Large
Language Models", AAAI 2024, https://arxiv.org/abs/2312.11983: scores get zero mean and unit
deviation per layer and kind, then compete.  The paper standardises the channels of heads before it
averages them; here a criterion gives one score per KV group, and those are standardised.  Floors,
which the paper lacks, keep layers of few KV groups from losing them all.
"""

from pruning.allocation.ranking import bundles, keep_best, standardized
from pruning.allocation.spread import widths
from pruning.methods.entry import Params
from pruning.plan import Widths
from pruning.registry import Problem


def allocate(problem: Problem, params: Params) -> Widths:
    """Walk up the ranking until the target is saved; the FFN then meets it exactly."""
    space, scores = problem.space, problem.scores
    groups = {i: standardized(scores[i].kv_group) for i in space.kv_groups}
    channels = {i: standardized(scores[i].ffn_channel) for i in space.ffn_channels}
    kinds = (
        (groups, space.kv_groups, space.costs.kv_group),
        (channels, space.ffn_channels, space.costs.ffn_channel),
    )
    ranking = sorted(
        (bundle, cost) for scored, counts, cost in kinds for bundle in bundles(scored, counts)
    )
    groups_out, saved = 0, 0.0
    for bundle, cost in ranking:
        if saved >= space.wanted:
            break
        saved += bundle.size * cost
        groups_out += bundle.size if cost == space.costs.kv_group else 0
    totals = space.split(groups_out)
    return widths(
        space,
        keep_best(groups, space.kv_groups, totals.kv_groups),
        keep_best(channels, space.ffn_channels, totals.ffn_channels),
    )
