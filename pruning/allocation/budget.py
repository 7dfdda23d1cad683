"""How a target is spent on blocks, KV groups and FFN channels, or why it cannot (torch-free)."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from pruning import methods
from pruning.allocation import targets
from pruning.allocation.targets import Costs
from pruning.errors import InvalidInput
from pruning.export import stock_family
from pruning.geometry import Geometry
from pruning.methods.entry import Kind, Params
from pruning.recipe import Method, Recipe, Size

Counts = Mapping[int, tuple[int, ...]]  # layer → how many units it may keep, widest first
_INSTEAD: Mapping[Kind, str] = {  # of methods that hold the whole base in memory
    "allocator": "choose an allocator that reads it layer by layer",
    "recovery": "leave self_calibration out",
}


@dataclass(frozen=True)
class Totals:
    """What all layers together are to keep; the channels meet the target to a fraction of one."""

    kv_groups: int
    ffn_channels: float


@dataclass(frozen=True)
class Space:
    """What each layer may keep once whole blocks have left, and what is still to be saved."""

    num_layers: int
    kv_groups: Counts  # of the layers that keep their attention
    ffn_channels: Counts  # of the layers that keep their MLP
    kv_steps: tuple[int, ...]  # how many KV groups may leave, in all layers together
    even: bool  # whether all layers must keep the same
    costs: Costs
    wanted: float  # in the measure of the costs
    heads_per_group: int | None = None  # query heads that stay in each KV group, if some leave

    @property
    def room(self) -> float:
        """The most that can be saved."""
        return self.kv_steps[-1] * self.costs.kv_group + self._ffn_room

    def split(self, kv_groups_out: float | None = None) -> Totals:
        """What to keep of each kind when about so many KV groups leave.

        The KV groups are the nearest number with which the FFN can take the rest, so the target
        is met as finely as FFN channels allow; where it cannot, as finely as KV groups do.  By
        default the same fraction of both kinds leaves.
        """
        cost = self.costs.kv_group
        groups, channels = _dense(self.kv_groups), _dense(self.ffn_channels)
        if kv_groups_out is None:
            whole = sum(groups) * cost + sum(channels) * self.costs.ffn_channel
            kv_groups_out = self.wanted * sum(groups) / whole if whole else 0
        desired = kv_groups_out

        def badness(out: int) -> tuple[float, float]:
            rest = self.wanted - out * cost
            return max(-rest, rest - self._ffn_room, 0.0), abs(out - desired)

        out = min(self.kv_steps, key=badness)
        rest = min(max(self.wanted - out * cost, 0.0), self._ffn_room)
        return Totals(
            kv_groups=sum(counts[0] for counts in self.kv_groups.values()) - out,
            ffn_channels=sum(counts[0] for counts in self.ffn_channels.values())
            - rest / self.costs.ffn_channel,
        )

    @property
    def _ffn_room(self) -> float:
        channels = sum(counts[0] - counts[-1] for counts in self.ffn_channels.values())
        return channels * self.costs.ffn_channel


def _dense(counts: Counts) -> list[int]:
    """The dense widths of the layers that may become narrower."""
    return [widths[0] for widths in counts.values() if len(widths) > 1]


def space(
    geometry: Geometry, recipe: Recipe, attentions: Iterable[int], mlps: Iterable[int]
) -> Space:
    """The space of a recipe when the named layers keep their attention and their MLP.

    The widths are even, the same in all layers, for the allocator `uniform` unless the export is
    per layer.  Query heads leave before the other kinds: of the numbers that each KV group may
    keep, the one nearest to the fraction that is to stay of all units, if the others can take the
    rest.  Raises InvalidInput when no stock class can hold a uniform export.
    """
    layers = list(attentions), list(mlps)
    sizes = head_counts(geometry, recipe)
    spaces = [_space(geometry, recipe, *layers, heads) for heads in sizes]
    possible = [space for space in spaces if space.kv_steps]
    if not possible:
        raise InvalidInput(
            "export", f"no stock class holds this {geometry.family} with biases; use per_layer"
        )
    whole = spaces[0]  # with all heads
    dense = sum(_dense(whole.ffn_channels)) * whole.costs.ffn_channel
    dense += sum(counts[0] for counts in whole.kv_groups.values()) * whole.costs.kv_group
    stays = 1 - whole.wanted / dense if dense else 1.0

    def badness(space: Space) -> tuple[float, float]:
        short = max(-space.wanted, space.wanted - space.room, 0.0)
        return short, abs((space.heads_per_group or sizes[0]) - sizes[0] * stays)

    return min(possible, key=badness)


def _space(
    geometry: Geometry, recipe: Recipe, attentions: list[int], mlps: list[int], heads: int
) -> Space:
    """The space when each KV group keeps `heads` query heads."""
    even = recipe.allocator.name == "uniform" and recipe.export != "per_layer"
    groups = {layer: kv_counts(geometry, recipe, layer) for layer in attentions}
    channels = {layer: ffn_widths(geometry, recipe, layer) for layer in mlps}
    if even:
        groups, channels = _shortest(groups), _shortest(channels)
    base = geometry.with_hidden(recipe.hidden_size)
    narrowed = base.with_heads(heads)
    dense, price = targets.costs(base, recipe), targets.costs(narrowed, recipe)
    num_layers = len(geometry.layers)
    gone = (num_layers - len(groups)) * dense.attention + (num_layers - len(channels)) * dense.mlp
    gone += len(groups) * (dense.attention - price.attention)
    gone += targets.saved_by_hidden(geometry, recipe)
    return Space(
        num_layers=num_layers,
        kv_groups=groups,
        ffn_channels=channels,
        kv_steps=_kv_steps(narrowed, recipe, groups, even),
        even=even,
        costs=replace(dense, kv_group=price.kv_group, base=targets.costs(geometry, recipe).base),
        wanted=targets.wanted(geometry, recipe) - gone,
        heads_per_group=heads if "query_head" in recipe.units else None,
    )


def head_counts(geometry: Geometry, recipe: Recipe) -> tuple[int, ...]:
    """How many query heads each KV group may keep, most first."""
    dense = geometry.layers[0].group_size
    floor = recipe.floors.query_heads if "query_head" in recipe.units else dense
    return tuple(range(dense, floor - 1, -1))


def kv_counts(geometry: Geometry, recipe: Recipe, layer: int) -> tuple[int, ...]:
    """How many KV groups a layer with attention may keep, widest first."""
    dense = geometry.layers[layer].num_kv_heads
    if "kv_group" not in recipe.units:
        return (dense,)
    least = max(recipe.floors.of(layer)[0], math.ceil(_least_fraction(recipe) * dense - 1e-9))
    return tuple(range(dense, least - 1, -1))


def ffn_widths(geometry: Geometry, recipe: Recipe, layer: int) -> tuple[int, ...]:
    """The widths that a layer's FFN may take, widest first: the dense one, then multiples."""
    dense, multiple = geometry.layers[layer].intermediate_size, recipe.ffn_multiple
    if "ffn_channel" not in recipe.units:
        return (dense,)
    fraction = max(recipe.floors.of(layer)[1], _least_fraction(recipe))
    # the tolerance undoes the rounding of a fraction such as 0.1 of 640
    least = math.ceil(fraction * dense - 1e-9)
    floor = math.ceil(least / multiple) * multiple
    largest = (dense - 1) // multiple * multiple
    return (dense, *range(largest, floor - 1, -multiple))


def _shortest(counts: Counts) -> dict[int, tuple[int, ...]]:
    """The widths that every layer may take: those of the layer with the highest floor."""
    common = min(counts.values(), key=len)
    return dict.fromkeys(counts, common)


def _kv_steps(geometry: Geometry, recipe: Recipe, counts: Counts, even: bool) -> tuple[int, ...]:
    if not even:
        return tuple(range(sum(kept[0] - kept[-1] for kept in counts.values()) + 1))
    layer, kept = geometry.layers[0], next(iter(counts.values()))
    if uniform_export(geometry, recipe):
        size, biases = layer.group_size, recipe.bias_compensation
        kept = tuple(n for n in kept if stock_family(geometry, n * size, biases))
    return tuple((layer.num_kv_heads - n) * len(counts) for n in kept)


def _least_fraction(recipe: Recipe) -> float:
    return _params(recipe).least_fraction


def _params(recipe: Recipe) -> Params:
    return methods.resolve("allocator", recipe.allocator)[1]


def check(geometry: Geometry, recipe: Recipe) -> None:
    """Raise InvalidInput if `recipe` cannot be run on a base of this geometry.

    Checked are the methods and their parameters, blocks, floors, target and export.
    """
    methods.resolve("criterion", recipe.criterion)
    methods.resolve("allocator", recipe.allocator)
    methods.resolve("schedule", recipe.schedule)
    if recipe.schedule.name == "soft_shrink" and "distill" not in [m.name for m in recipe.recovery]:
        raise InvalidInput("schedule", "soft_shrink distils while it shrinks; recover by distill")
    if recipe.size and recipe.size.latency_ms and recipe.schedule.name != "one_shot":
        raise InvalidInput("schedule", "a latency is reached in one cut; choose one_shot")
    if recipe.fleet and recipe.schedule.name != "one_shot":
        raise InvalidInput("schedule", "a fleet is scored on the dense base; choose one_shot")
    for position, method in enumerate(recipe.recovery):
        entry, _ = methods.resolve("recovery", method)
        if position and entry.from_dense:
            raise InvalidInput("recovery", f"{entry.name} starts from the dense base: put it first")
        if recipe.carry == "refit" and not entry.from_dense:
            raise InvalidInput(
                "carry", f"refit cannot follow {entry.name}; give project, and carry_distill"
            )
    if len(set(geometry.layers)) > 1:
        raise InvalidInput("base", "layers differ in width: it is slim already; give a dense base")
    _check_blocks(geometry, recipe)
    _check_floors(geometry, recipe)
    _check_export(geometry, recipe)
    _check_hidden(geometry, recipe)
    _check_refits(geometry, recipe)
    _check_memory(geometry, recipe)
    _check_target(geometry, recipe)


def any_space(geometry: Geometry, recipe: Recipe) -> Space:
    """The space when the last blocks leave; it is as large whichever blocks may and do leave."""
    free = [i for i in range(len(geometry.layers)) if i not in recipe.floors.layers]

    def kept(count: int) -> list[int]:
        return [i for i in range(len(geometry.layers)) if i not in free[len(free) - count :]]

    return space(geometry, recipe, kept(recipe.blocks.attention), kept(recipe.blocks.mlp))


def uniform_export(geometry: Geometry, recipe: Recipe) -> bool:
    """Whether nothing but a stock class may hold the slim base."""
    return recipe.export == "uniform" or geometry.architecture.uniform_only is not None


def _check_export(geometry: Geometry, recipe: Recipe) -> None:
    reason = geometry.architecture.uniform_only
    if reason and recipe.export == "per_layer":
        raise InvalidInput("export", f"{geometry.family} has uniform exports only: {reason}")
    if reason and recipe.allocator.name != "uniform":
        raise InvalidInput("allocator", f"{geometry.family} needs uniform: {reason}")
    if recipe.export == "uniform" and recipe.allocator.name != "uniform":
        raise InvalidInput("export", "uniform needs allocator uniform; give auto or per_layer")


def _check_hidden(geometry: Geometry, recipe: Recipe) -> None:
    """The hidden state is narrowed in one cut, by index, and not refit."""
    if recipe.hidden_size is None:
        return
    if recipe.hidden_size >= geometry.hidden_size:
        raise InvalidInput("hidden_size", f"less than the {geometry.hidden_size} of the base")
    at_the_base = [m for m in recipe.recovery if methods.resolve("recovery", m)[0].from_dense]
    for field, refused, fix in (
        ("size", recipe.size and recipe.size.latency_ms, "give a target, or another size"),
        ("schedule", recipe.schedule.name != "one_shot", "choose one_shot"),
        ("recovery", at_the_base, "give methods that train, in place of closed_form"),
        ("carry", recipe.carry == "refit", "give project, and carry_distill"),
    ):
        if refused:
            raise InvalidInput(field, f"this works at the hidden size of the base; {fix}")


def _check_refits(geometry: Geometry, recipe: Recipe) -> None:
    """What is refit to reach hidden states must end where a block does, not before a norm."""
    if not any(block.post_norm for block in geometry.architecture.blocks):
        return
    if recipe.carry == "refit":
        raise InvalidInput("carry", f"{geometry.family} has norms behind its readers; give project")
    for method in recipe.recovery:
        if method.params.get("goal") == "stream":
            reason = f"stream: {geometry.family} has norms behind its readers; give goal layer"
            raise InvalidInput("recovery", reason)


def _check_blocks(geometry: Geometry, recipe: Recipe) -> None:
    blocks, num_layers = recipe.blocks, len(geometry.layers)
    most = min(num_layers - 1, num_layers - len(recipe.floors.layers))
    for name, count in (("attention", blocks.attention), ("mlp", blocks.mlp)):
        if count > most:
            raise InvalidInput(
                f"blocks.{name}", f"at most {most}: one must stay, and those in floors.layers"
            )
    if uniform_export(geometry, recipe) and blocks.attention != blocks.mlp:
        raise InvalidInput("export", "uniform keeps whole layers; remove as many mlp as attention")


def _check_floors(geometry: Geometry, recipe: Recipe) -> None:
    num_layers, most = len(geometry.layers), geometry.layers[0].num_kv_heads
    own = {f"layers.{layer}.kv_groups": f.kv_groups for layer, f in recipe.floors.layers.items()}
    for name, count in {"kv_groups": recipe.floors.kv_groups, **own}.items():
        if count is not None and count > most:
            raise InvalidInput(f"floors.{name}", f"at most {most}, the base has no more")
    size = geometry.layers[0].group_size
    if "query_head" in recipe.units and recipe.floors.query_heads > size:
        raise InvalidInput("floors.query_heads", f"at most {size}, no KV group has more")
    for layer in recipe.floors.layers:
        if layer >= num_layers:
            raise InvalidInput(f"floors.layers.{layer}", f"the last layer is {num_layers - 1}")


def _check_memory(geometry: Geometry, recipe: Recipe) -> None:
    needed = geometry.parameters * 4 / 2**30
    asked: list[tuple[Kind, Method]] = [("allocator", recipe.allocator)]
    for kind, method in [*asked, *(("recovery", method) for method in recipe.recovery)]:
        allowed = methods.resolve(kind, method)[1].most_memory_gib
        if allowed is not None and needed > allowed:
            raise InvalidInput(
                f"{kind}.params.memory_gib",
                f"{method.name} holds the whole base in memory, {needed:.1f} GiB in float32; "
                f"allow that much, or {_INSTEAD[kind]}",
            )


def _check_target(geometry: Geometry, recipe: Recipe) -> None:
    if recipe.size is not None and recipe.size.latency_ms is not None and recipe.size.table is None:
        return  # nobody knows before it is measured
    space, wanted = any_space(geometry, recipe), targets.wanted(geometry, recipe)
    blocks = wanted - space.wanted
    most = blocks + space.room
    if recipe.size is not None:
        _check_size(recipe.size, space.costs.base - blocks, space.costs.base - most)
    elif wanted > most:
        reach = math.floor(most / geometry.body_parameters * 1e4) / 1e4
        raise InvalidInput(
            "target",
            f"the largest reachable target is {reach} with these units, blocks and floors",
            code="target_unreachable",
        )
    elif wanted < blocks:
        least = math.ceil(blocks / geometry.body_parameters * 1e4) / 1e4
        raise InvalidInput(
            "target",
            f"blocks, query heads and hidden size alone are {least}; give that, or less of them",
        )


def _check_size(size: Size, largest: float, smallest: float) -> None:
    measure, asked = size.measure, size.amount
    if measure == "latency_ms":
        smallest = math.ceil(smallest / targets.NANOSECONDS * 1e4) / 1e4
        largest = math.floor(largest / targets.NANOSECONDS * 1e4) / 1e4
    else:
        smallest, largest = math.ceil(smallest), math.floor(largest)
    if asked < smallest:
        raise InvalidInput(
            f"size.{measure}",
            f"the smallest reachable size is {smallest} {measure} with these units, blocks and "
            "floors",
            code="target_unreachable",
        )
    if asked > largest:
        raise InvalidInput(
            f"size.{measure}",
            f"at most {largest}, the base without blocks, heads and hidden channels that leave",
        )
