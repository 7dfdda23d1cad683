"""From widths to a plan: in every layer the units with the best scores stay."""

from collections.abc import Sequence

from torch import Tensor

from pruning.plan import LayerPlan, Plan, Widths
from pruning.registry import LayerScores


def select(scores: Sequence[LayerScores], widths: Widths, bias_compensation: bool) -> Plan:
    """The plan that keeps as many units as `widths` says; on a tie the later unit stays."""
    return Plan(
        layers=tuple(
            LayerPlan(kv_groups=_best(s.kv_group, groups), ffn_channels=_best(s.ffn_channel, width))
            for s, groups, width in zip(scores, widths.kv_groups, widths.ffn_channels, strict=True)
        ),
        bias_compensation=bias_compensation,
    )


def _best(scores: Tensor, count: int) -> tuple[int, ...]:
    order = scores.argsort(stable=True).tolist()
    return tuple(sorted(order[len(order) - count :]))
