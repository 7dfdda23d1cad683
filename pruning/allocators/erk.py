"""ERK: linears with few weights per input and output stay denser (Erdős–Rényi).

Evci et al., "Rigging the Lottery: Making All Tickets Winners", ICML 2020,
https://arxiv.org/abs/1911.11134, after Mocanu et al., Nature Communications 2018; as a baseline
for pruning in Liu et al., ICLR 2022, https://arxiv.org/abs/2202.02643.  All layers of a base have
the same shapes, so the rule only says how the target is split between attention and FFN.
"""

from pruning.allocation.spread import shifted, widths
from pruning.geometry import Geometry
from pruning.methods.entry import Params
from pruning.plan import Widths
from pruning.registry import Problem


def allocate(problem: Problem, params: Params) -> Widths:
    """density = ε · (outputs + inputs) / (outputs · inputs), at most 1, with the ε that fits."""
    space, geometry = problem.space, problem.checkpoint.geometry
    totals = space.split(_groups_out(problem, geometry))
    even = dict.fromkeys(range(space.num_layers), 0.0)
    return widths(
        space,
        shifted(space.kv_groups, totals.kv_groups, even),
        shifted(space.ffn_channels, totals.ffn_channels, even),
    )


def _groups_out(problem: Problem, geometry: Geometry) -> float:
    """How many KV groups the rule removes; the floors are seen to later."""
    space = problem.space
    groups = sum(kept[0] for kept in space.kv_groups.values() if len(kept) > 1)
    channels = sum(kept[0] for kept in space.ffn_channels.values() if len(kept) > 1)
    attention, ffn = groups * space.costs.kv_group, channels * space.costs.ffn_channel
    if attention + ffn == 0:
        return 0.0
    raw_attention, raw_ffn = (density(geometry, b.linears) for b in geometry.architecture.blocks)
    kept = attention + ffn - space.wanted
    epsilon = kept / (attention * raw_attention + ffn * raw_ffn)
    if epsilon * raw_attention > 1:
        return 0.0
    if epsilon * raw_ffn > 1:
        return space.wanted / space.costs.kv_group
    return groups * (1 - epsilon * raw_attention)


def density(geometry: Geometry, linears: tuple[str, ...]) -> float:
    """(outputs + inputs) / (outputs · inputs) of the linears, averaged over their weights."""
    shapes = [shape for name in linears if (shape := geometry.linear_shape(0, name))]
    return sum(o + i for o, i in shapes) / sum(o * i for o, i in shapes)
