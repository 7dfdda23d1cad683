"""Uniform: every layer keeps the same number of KV groups and of FFN channels.

The baseline of Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for
model compression", ICLR 2018 workshop, https://arxiv.org/abs/1710.01878.  Its results are plain
configs that any tool loads.
"""

from collections.abc import Sequence

from torch import Tensor

from pruning.blocks import remaining
from pruning.budget import allot, ffn_widths
from pruning.geometry import Geometry
from pruning.methods import Params
from pruning.plan import LayerPlan, Plan
from pruning.recipe import Recipe
from pruning.registry import LayerScores


def allocate(
    geometry: Geometry,
    scores: Sequence[LayerScores],
    recipe: Recipe,
    params: Params,
    comparable: bool,
) -> Plan:
    """Keep the best units of each layer.

    Misses the target by at most half of `ffn_multiple` channels in every layer; see budget.allot.
    """
    attentions, mlps = remaining(scores, recipe.blocks)
    budget = allot(geometry, recipe)
    num_groups = geometry.layers[0].num_kv_heads - budget.kv_groups // len(attentions)
    dense = geometry.layers[0].intermediate_size
    wanted = dense - budget.ffn_parameters / (len(mlps) * geometry.ffn_channel_parameters(0))
    width = min(ffn_widths(geometry, recipe), key=lambda w: abs(w - wanted))
    return Plan(
        layers=tuple(
            LayerPlan(
                kv_groups=_best(s.kv_group, num_groups) if i in attentions else (),
                ffn_channels=_best(s.ffn_channel, width) if i in mlps else (),
            )
            for i, s in enumerate(scores)
        ),
        bias_compensation=recipe.bias_compensation,
    )


def _best(scores: Tensor, count: int) -> tuple[int, ...]:
    order = scores.argsort(stable=True).tolist()
    return tuple(sorted(order[len(order) - count :]))
