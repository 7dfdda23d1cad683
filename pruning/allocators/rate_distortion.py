"""Rate-distortion: the widths of which the distortions of the logits, added up, are least.

Xu et al., "Efficient Joint Optimization of Layer-Adaptive Weight Pruning in Deep Neural Networks",
ICCV 2023, https://arxiv.org/abs/2308.10438: each block is narrowed alone and the squared error of
the output measured; were these errors additive, dynamic programming would find the best widths.
The whole base is held in memory in float32 (`memory_gib` bounds it): it is meant for small bases.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pruning.allocation.budget import Counts, Space
from pruning.allocation.selection import select
from pruning.allocation.spread import settled
from pruning.allocation.trial import Trial
from pruning.methods.allocators import RateDistortionParams
from pruning.plan import Plan, Widths
from pruning.registry import Problem
from pruning.units import KINDS, Kind

Curves = Mapping[int, list[float]]  # layer → distortion at each of its widths, widest first

_MOST_WIDTHS = 64  # that the programming looks at in a layer


def allocate(problem: Problem, params: RateDistortionParams) -> Widths:
    """The best split between the kinds, and the best widths within each."""
    space = problem.space
    groups, channels = space.kv_groups, _thinned(space.ffn_channels)
    measure = _Measure(problem, params)
    of_groups = cheapest(measure.curves("kv_group", groups))
    of_channels = cheapest(measure.curves("ffn_channel", channels))
    best: tuple[float, int, int] | None = None
    for out in range(len(of_groups)):
        totals = space.split(out)
        if sum(kept[0] for kept in groups.values()) - totals.kv_groups != out:
            continue
        steps = _steps(channels, totals.ffn_channels, len(of_channels) - 1)
        candidate = (of_groups[out][0] + of_channels[steps][0], out, steps)
        best = min(best or candidate, candidate)
    assert best is not None
    return _widths(space, channels, of_groups[best[1]][1], of_channels[best[2]][1])


def cheapest(curves: Curves) -> list[tuple[float, dict[int, int]]]:
    """For every number of steps taken in all layers together: the least sum, and who takes them.

    One step makes a layer as narrow as its next width.
    """
    sums, taken = torch.zeros(1, dtype=torch.float64), []
    for curve in curves.values():
        size = len(sums) + len(curve) - 1
        table = torch.full((len(curve), size), torch.inf, dtype=torch.float64)
        for steps, distortion in enumerate(curve):
            table[steps, steps : steps + len(sums)] = sums + distortion
        sums, who = table.min(dim=0)
        taken.append(who)
    return [(float(least), _backtrack(list(curves), taken, i)) for i, least in enumerate(sums)]


def _backtrack(layers: Sequence[int], taken: Sequence[Tensor], steps: int) -> dict[int, int]:
    found = {}
    for layer, who in zip(reversed(layers), reversed(taken), strict=True):
        found[layer] = int(who[steps])
        steps -= found[layer]
    return found


def _steps(channels: Counts, total: float, most: int) -> int:
    """How many steps of the thinned widths leave about `total` channels."""
    out = sum(kept[0] for kept in channels.values()) - total
    room = sum(kept[0] - kept[-1] for kept in channels.values())
    return round(out / room * most) if room else 0


def _thinned(counts: Counts) -> dict[int, tuple[int, ...]]:
    """Few enough widths, the dense one and the floor among them, about evenly apart."""
    stride = max(1, max(map(len, counts.values())) // _MOST_WIDTHS)
    return {layer: (*kept[:-1:stride], kept[-1]) for layer, kept in counts.items()}


def _widths(
    space: Space, channels: Counts, groups_out: Mapping[int, int], taken: Mapping[int, int]
) -> Widths:
    groups = {layer: kept[groups_out[layer]] for layer, kept in space.kv_groups.items()}
    desired = {layer: float(kept[taken[layer]]) for layer, kept in channels.items()}
    found = settled(space, groups, desired)
    assert found is not None
    return found


class _Measure:
    """Measures how far the logits move when one block alone is narrowed."""

    def __init__(self, problem: Problem, params: RateDistortionParams):
        self._problem, self._params, self._done = problem, params, 0
        ids_ST = problem.calibration()[: params.sequences]
        self._trial = Trial(problem.checkpoint, ids_ST, problem.statistics)
        self._head_gram_HH = self._trial.head_gram()
        self._dense = Plan.dense(problem.checkpoint.geometry)
        self._states = self._trial.final_states(self._dense, params.sequences)

    def curves(self, kind: Kind, counts: Counts) -> Curves:
        return {layer: self._curve(kind, layer, kept) for layer, kept in counts.items()}

    def _curve(self, kind: Kind, layer: int, kept: Sequence[int]) -> list[float]:
        """Measured at some widths, the narrowest among them, and linear between them."""
        self._done += 1
        progress = self._done / (len(KINDS) * self._problem.space.num_layers)
        self._problem.progress(progress, f"distortion of layer {layer + 1}")
        last, points = len(kept) - 1, min(self._params.levels, len(kept) - 1)
        curve = [0.0] * len(kept)
        before = 0
        for point in range(1, points + 1):
            here = round(last * point / points)
            curve[here] = self._distortion(kind, layer, kept[here])
            rise = (curve[here] - curve[before]) / (here - before)
            for between in range(before + 1, here):
                curve[between] = curve[before] + rise * (between - before)
            before = here
        return curve

    def _distortion(self, kind: Kind, layer: int, count: int) -> float:
        """Mean over tokens of the squared error of all logits."""
        dense = self._problem.checkpoint.geometry.layers
        kept = {
            "kv_group": [widths.num_kv_heads for widths in dense],
            "ffn_channel": [widths.intermediate_size for widths in dense],
        }
        kept[kind][layer] = count
        narrowed = Widths(tuple(kept["kv_group"]), tuple(kept["ffn_channel"]))
        plan = select(self._problem.scores, narrowed, self._problem.recipe.bias_compensation)
        error, tokens = 0.0, 0
        found = self._trial.final_states(plan, self._params.sequences)
        for before_STH, after_STH in zip(self._states, found, strict=True):
            moved_NH = (after_STH - before_STH).flatten(0, 1)
            error += float(((moved_NH @ self._head_gram_HH) * moved_NH).sum(dtype=torch.float64))
            tokens += len(moved_NH)
        return error / tokens
