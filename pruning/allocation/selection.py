"""From widths to a plan: in every layer the units with the best scores stay."""

from collections.abc import Sequence

from torch import Tensor

from pruning.plan import LayerPlan, Plan, Widths
from pruning.registry import LayerScores


def select(scores: Sequence[LayerScores], widths: Widths, bias_compensation: bool) -> Plan:
    """The plan that keeps as many units as `widths` says; on a tie the later unit stays."""
    counts = zip(scores, widths.kv_groups, widths.ffn_channels, strict=True)
    layers = (_layer(s, groups, width, widths.heads_per_group) for s, groups, width in counts)
    return Plan(layers=tuple(layers), bias_compensation=bias_compensation)


def _layer(scores: LayerScores, num_groups: int, width: int, num_heads: int | None) -> LayerPlan:
    groups = _best(scores.kv_group, num_groups)
    return LayerPlan(
        kv_groups=groups,
        ffn_channels=_best(scores.ffn_channel, width),
        query_heads=None if num_heads is None else _heads(scores, groups, num_heads),
    )


def _heads(scores: LayerScores, groups: Sequence[int], count: int) -> tuple[int, ...]:
    """The best `count` query heads of each group."""
    assert scores.query_head is not None
    by_group = scores.query_head.view(len(scores.kv_group), -1)
    size = by_group.shape[1]
    return tuple(g * size + head for g in groups for head in _best(by_group[g], count))


def _best(scores: Tensor, count: int) -> tuple[int, ...]:
    order = scores.argsort(stable=True).tolist()
    return tuple(sorted(order[len(order) - count :]))
