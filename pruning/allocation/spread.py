"""Spreads a total over layers by a wish for each, within floors and multiples (torch-free)."""

from collections.abc import Callable, Mapping

from pruning.allocation.budget import Counts, Space
from pruning.plan import Widths

Wish = Callable[[int, float], float]  # layer, level → units that it should keep, rising in level
Spread = Callable[[Counts, float], Mapping[int, int]]  # counts, total → what each layer keeps

_HALVINGS = 200  # more than a float has bits to tell apart


def both_kinds(space: Space, spread: Spread) -> Widths:
    """Spread KV groups and FFN channels alike, the same fraction of each leaving."""
    totals = space.split()
    return widths(
        space,
        spread(space.kv_groups, totals.kv_groups),
        spread(space.ffn_channels, totals.ffn_channels),
    )


def even(space: Space) -> Widths:
    """The same in every layer, as near to what is wanted as one width for all of them allows."""
    totals = space.split()
    num_groups = totals.kv_groups // len(space.kv_groups)
    wanted = totals.ffn_channels / len(space.ffn_channels)
    allowed = next(iter(space.ffn_channels.values()))
    width = min(allowed, key=lambda w: abs(w - wanted))
    return widths(
        space, dict.fromkeys(space.kv_groups, num_groups), dict.fromkeys(space.ffn_channels, width)
    )


def level(space: Space) -> Widths:
    """The same fraction of every layer, as nearly as its widths allow."""
    return both_kinds(space, lambda counts, n: shifted(counts, n, dict.fromkeys(counts, 0.0)))


def widths(space: Space, groups: Mapping[int, int], channels: Mapping[int, int]) -> Widths:
    """As tuples over all layers, absent blocks having no units."""
    layers = range(space.num_layers)
    return Widths(
        kv_groups=tuple(groups.get(layer, 0) for layer in layers),
        ffn_channels=tuple(channels.get(layer, 0) for layer in layers),
        heads_per_group=space.heads_per_group,
    )


def proportional(counts: Counts, total: float, weights: Mapping[int, float]) -> dict[int, int]:
    """Each layer keeps units in proportion to its weight, between its floor and its dense width.

    What a layer at its limit cannot take or give, the others share: water-filling.
    """
    largest = max(weights[layer] for layer in counts)
    shares = {i: max(weights[i] / largest, 1e-9) if largest > 0 else 1.0 for i in counts}
    high = max(kept[0] / shares[layer] for layer, kept in counts.items())
    return fill(counts, total, lambda layer, level: level * shares[layer], (0.0, high))


def shifted(counts: Counts, total: float, fractions: Mapping[int, float]) -> dict[int, int]:
    """Each layer keeps its fraction of the dense width, plus one shift common to all."""
    reach = 1 + max(abs(fractions[layer]) for layer in counts)
    return fill(
        counts, total, lambda i, level: (fractions[i] + level) * counts[i][0], (-reach, reach)
    )


def settled(
    space: Space, groups: Mapping[int, int], channels: Mapping[int, float]
) -> Widths | None:
    """These KV groups, and the channels moved alike until they meet the target.

    None where a layer cannot keep so many groups, or the FFN cannot take what they leave.
    """
    if any(count not in space.kv_groups[layer] for layer, count in groups.items()):
        return None
    total = sum(groups.values())
    totals = space.split(sum(kept[0] for kept in space.kv_groups.values()) - total)
    if totals.kv_groups != total:
        return None
    reach = max(kept[0] for kept in space.ffn_channels.values())
    found = fill(
        space.ffn_channels,
        totals.ffn_channels,
        lambda layer, level: channels[layer] + level,
        (-2.0 * reach, 2.0 * reach),
    )
    return widths(space, groups, found)


def fill(counts: Counts, total: float, wish: Wish, levels: tuple[float, float]) -> dict[int, int]:
    """Allowed counts whose sum is nearest to `total`, by the wishes at one common level.

    The level lies between `levels`: with the first all layers are at their floors, with the second
    none is below its dense width.
    """

    def clipped(level: float) -> dict[int, float]:
        return {i: min(max(wish(i, level), kept[-1]), kept[0]) for i, kept in counts.items()}

    low, high = levels
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if sum(clipped(middle).values()) > total else (middle, high)
    return rounded(counts, total, clipped(low))


def rounded(counts: Counts, total: float, desired: Mapping[int, float]) -> dict[int, int]:
    """Round to allowed counts, up where most is missing, so that the sum is nearest to `total`.

    `desired` sums to `total` at most.  On a tie the earlier layer keeps more.
    """
    position = {
        layer: next((p for p, count in enumerate(kept) if count <= desired[layer]), len(kept) - 1)
        for layer, kept in counts.items()
    }
    missing = total - sum(counts[layer][p] for layer, p in position.items())

    def step(layer: int) -> int:
        kept, p = counts[layer], position[layer]
        return kept[p - 1] - kept[p]

    while fitting := [i for i, p in position.items() if p and step(i) / 2 <= missing]:
        layer = max(fitting, key=lambda i: desired[i] - counts[i][position[i]])
        missing -= step(layer)
        position[layer] -= 1
    return {layer: counts[layer][p] for layer, p in position.items()}
