"""Dynamic programming: the widths of which some measure, added up over all blocks, is least."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from pruning.allocation.budget import Counts, Space
from pruning.allocation.spread import settled, widths
from pruning.plan import Widths
from pruning.progress import Progress
from pruning.units import Kind

Curves = Mapping[int, list[float]]  # layer → a measure at each of its widths, widest first
Measure = Callable[[Kind, int, int], float]  # kind, layer, units that stay there

_MOST_WIDTHS = 64  # that the programming looks at in a layer


def least(space: Space, measure: Measure, levels: int, progress: Progress) -> Widths:
    """The best split between the kinds, and the best widths within each.

    Each block is measured at its dense width and `levels` others, the narrowest among them; between
    them the measure is taken to be linear.
    """
    groups, channels = space.kv_groups, _thinned(space.ffn_channels)
    counts: dict[Kind, Counts] = {"kv_group": groups, "ffn_channel": channels}
    curves: dict[Kind, dict[int, list[float]]] = {kind: {} for kind in counts}
    blocks = [(kind, layer) for kind, layers in counts.items() for layer in layers]
    for number, (kind, layer) in enumerate(blocks):
        progress(number / len(blocks), f"{kind}s of layer {layer + 1}")
        curve = _curve(counts[kind][layer], partial(measure, kind, layer), levels)
        curves[kind][layer] = curve
    of_groups, of_channels = cheapest(curves["kv_group"]), cheapest(curves["ffn_channel"])
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


def widest(space: Space) -> Widths:
    """All that a space lets stay."""
    dense = [
        {layer: kept[0] for layer, kept in counts.items()}
        for counts in (space.kv_groups, space.ffn_channels)
    ]
    return widths(space, *dense)


def changed(around: Widths, kind: Kind, layer: int, count: int) -> Widths:
    """The same but for one block."""
    counts = list(around.kv_groups if kind == "kv_group" else around.ffn_channels)
    counts[layer] = count
    if kind == "kv_group":
        return replace(around, kv_groups=tuple(counts))
    return replace(around, ffn_channels=tuple(counts))


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


def _curve(kept: Sequence[int], measure: Callable[[int], float], levels: int) -> list[float]:
    last, points = len(kept) - 1, min(levels, len(kept) - 1)
    curve, before = [measure(kept[0])] + [0.0] * last, 0
    for point in range(1, points + 1):
        here = round(last * point / points)
        curve[here] = measure(kept[here])
        rise = (curve[here] - curve[before]) / (here - before)
        for between in range(before + 1, here):
            curve[between] = curve[before] + rise * (between - before)
        before = here
    return curve


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
