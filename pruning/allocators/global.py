"""Global: units of all layers in one ranking per kind, with a floor in each layer.

Gupta et al., "Is Complexity Required for Neural Network Pruning? A Case Study on Global Magnitude
Pruning", IEEE CAI 2024, https://arxiv.org/abs/2209.14624, whose minimum threshold per layer is the
floor here.  Scores that mean different things in different layers are standardised first, as in
An et al., AAAI 2024, https://arxiv.org/abs/2312.11983.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from pruning.blocks import remaining
from pruning.budget import allot, ffn_widths
from pruning.geometry import Geometry
from pruning.methods import GlobalParams
from pruning.plan import LayerPlan, Plan
from pruning.recipe import Recipe
from pruning.registry import LayerScores


@dataclass(frozen=True, order=True)
class _Bundle:
    """Units of one layer that leave together; bundles of a layer leave in their order."""

    score: float  # mean of its units
    layer: int
    position: int
    units: tuple[int, ...]


def allocate(
    geometry: Geometry,
    scores: Sequence[LayerScores],
    recipe: Recipe,
    params: GlobalParams,
    comparable: bool,
) -> Plan:
    """Remove the lowest KV groups, then the lowest FFN channels in bundles of `ffn_multiple`.

    Misses the target by at most half a bundle; see budget.allot.
    """
    attentions, mlps = remaining(scores, recipe.blocks)
    budget = allot(geometry, recipe)
    standardize = params.normalize == "standardize" or (
        params.normalize == "auto" and not comparable
    )
    dense = geometry.layers[0]
    group_counts = range(dense.num_kv_heads, recipe.floors.kv_groups - 1, -1)
    widths = ffn_widths(geometry, recipe)
    groups = {i: _ready(scores[i].kv_group, standardize) for i in attentions}
    channels = {i: _ready(scores[i].ffn_channel, standardize) for i in mlps}
    channels_out = budget.ffn_parameters / geometry.ffn_channel_parameters(0)
    return _plan(
        geometry,
        _keep(groups, group_counts, budget.kv_groups),
        _keep(channels, widths, channels_out),
        recipe.bias_compensation,
    )


def _ready(scores: Tensor, standardize: bool) -> Tensor:
    if not standardize:
        return scores
    deviation = scores.std(correction=0)
    return (scores - scores.mean()) / deviation if deviation > 0 else scores * 0


def _bundles(layer: int, scores: Tensor, counts: Sequence[int]) -> list[_Bundle]:
    """What leaves a layer, step by step, as it narrows through `counts` of kept units."""
    order: list[int] = scores.argsort(stable=True).tolist()
    ranked: list[float] = scores.sort(stable=True).values.tolist()
    bundles = []
    for position, (wide, narrow) in enumerate(pairwise(counts)):
        lowest = slice(len(order) - wide, len(order) - narrow)
        mean = sum(ranked[lowest]) / (wide - narrow)
        bundles.append(_Bundle(mean, layer, position, tuple(order[lowest])))
    return bundles


def _keep(
    scores: dict[int, Tensor], counts: Sequence[int], out: float
) -> dict[int, tuple[int, ...]]:
    """Units that stay in each layer when about `out` of them leave, to within half a bundle."""
    removed: dict[int, set[int]] = {layer: set() for layer in scores}
    bundles = sorted(b for layer, s in scores.items() for b in _bundles(layer, s, counts))
    for bundle in bundles:
        if out < len(bundle.units) / 2:
            break
        removed[bundle.layer].update(bundle.units)
        out -= len(bundle.units)
    return {
        layer: tuple(u for u in range(len(s)) if u not in removed[layer])
        for layer, s in scores.items()
    }


def _plan(
    geometry: Geometry,
    groups: dict[int, tuple[int, ...]],
    channels: dict[int, tuple[int, ...]],
    bias_compensation: bool,
) -> Plan:
    return Plan(
        layers=tuple(
            LayerPlan(kv_groups=groups.get(i, ()), ffn_channels=channels.get(i, ()))
            for i in range(len(geometry.layers))
        ),
        bias_compensation=bias_compensation,
    )
