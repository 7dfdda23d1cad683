"""How a target is spent on blocks, KV groups and FFN channels, and whether it can be (torch-free).

Counted are the weights that leave; a bias gained by compensation is not charged to the target.
"""

import math
from dataclasses import dataclass

from pruning import methods
from pruning.errors import InvalidInput
from pruning.export import stock_family
from pruning.geometry import Geometry
from pruning.recipe import Recipe


@dataclass(frozen=True)
class Budget:
    """What is to leave besides whole blocks: KV groups, and FFN channels worth some parameters."""

    kv_groups: int
    ffn_parameters: int


@dataclass(frozen=True)
class _Room:
    """What may leave, in parameters: whole blocks must, KV groups in steps, FFN channels."""

    blocks: int
    kv_steps: tuple[int, ...]  # KV groups that leave, by step
    kv_group: int
    kv_total: int  # of all groups outside of removed blocks, floors included
    ffn: int
    ffn_total: int

    @property
    def largest(self) -> int:
        return self.blocks + self.kv_steps[-1] * self.kv_group + self.ffn


def check(geometry: Geometry, recipe: Recipe) -> None:
    """Raise InvalidInput if `recipe` cannot be run on a base of this geometry.

    Checked are the methods and their parameters, blocks, floors, target and export.
    """
    methods.resolve("criterion", recipe.criterion)
    methods.resolve("allocator", recipe.allocator)
    methods.resolve("schedule", recipe.schedule)
    if recipe.fleet and recipe.schedule.name != "one_shot":
        raise InvalidInput("schedule", "a fleet is scored on the dense base; choose one_shot")
    for position, method in enumerate(recipe.recovery):
        entry, _ = methods.resolve("recovery", method)
        if position and entry.from_dense:
            raise InvalidInput("recovery", f"{entry.name} starts from the dense base: put it first")
        if recipe.carry == "refit" and not entry.from_dense:
            raise InvalidInput("carry", f"refit cannot follow {entry.name}; give project")
    if len(set(geometry.layers)) > 1:
        raise InvalidInput("base", "layers differ in width: it is slim already; give a dense base")
    _check_blocks(geometry, recipe)
    if recipe.floors.kv_groups > geometry.layers[0].num_kv_heads:
        raise InvalidInput(
            "floors.kv_groups", f"at most {geometry.layers[0].num_kv_heads}, the base has no more"
        )
    if recipe.export == "uniform" and recipe.allocator.name != "uniform":
        raise InvalidInput("export", "uniform needs allocator uniform; give auto or per_layer")
    _check_target(geometry, recipe)


def largest_target(geometry: Geometry, recipe: Recipe) -> float:
    """The largest fraction of `body_parameters` that units, blocks and floors let go."""
    return _room(geometry, recipe).largest / geometry.body_parameters


def allot(geometry: Geometry, recipe: Recipe) -> Budget:
    """Split the target: the same fraction of KV groups and FFN channels, in whole KV steps.

    A KV step is one group (allocator global) or one group of every layer (uniform).  The FFN takes
    the remainder, so the plan misses the target by at most half an FFN step: `ffn_multiple`
    channels of one layer (global) or of every layer (uniform).  Where the FFN may not be cut, or
    cannot take the remainder, it is half a KV step instead.
    """
    room = _room(geometry, recipe)
    wanted = recipe.target * geometry.body_parameters - room.blocks
    fraction = wanted / (room.kv_total + room.ffn_total)
    desired = fraction * room.kv_total

    def badness(groups: int) -> tuple[float, float]:
        parameters = groups * room.kv_group
        unreachable = max(parameters - wanted, wanted - parameters - room.ffn, 0.0)
        return unreachable, abs(parameters - desired)

    groups = min(room.kv_steps, key=badness)
    rest = max(0, round(wanted) - groups * room.kv_group)
    return Budget(kv_groups=groups, ffn_parameters=min(rest, room.ffn))


def ffn_widths(geometry: Geometry, recipe: Recipe) -> tuple[int, ...]:
    """The widths that a layer's FFN may take, widest first: the dense one, then multiples."""
    dense, multiple = geometry.layers[0].intermediate_size, recipe.ffn_multiple
    if "ffn_channel" not in recipe.units:
        return (dense,)
    # the tolerance undoes the rounding of a fraction such as 0.1 of 640
    least = math.ceil(recipe.floors.ffn_fraction * dense - 1e-9)
    floor = math.ceil(least / multiple) * multiple
    largest = (dense - 1) // multiple * multiple
    return (dense, *range(largest, floor - 1, -multiple))


def _room(geometry: Geometry, recipe: Recipe) -> _Room:
    num_layers, layer = len(geometry.layers), geometry.layers[0]
    attentions, mlps = num_layers - recipe.blocks.attention, num_layers - recipe.blocks.mlp
    widths = ffn_widths(geometry, recipe)
    channel, group = geometry.ffn_channel_parameters(0), geometry.kv_group_parameters(0)
    return _Room(
        blocks=recipe.blocks.attention * geometry.attention_parameters(0)
        + recipe.blocks.mlp * geometry.mlp_parameters(0),
        kv_steps=_kv_steps(geometry, recipe, attentions),
        kv_group=group,
        kv_total=attentions * layer.num_kv_heads * group if "kv_group" in recipe.units else 0,
        ffn=mlps * (widths[0] - widths[-1]) * channel,
        ffn_total=mlps * widths[0] * channel if "ffn_channel" in recipe.units else 0,
    )


def _kv_steps(geometry: Geometry, recipe: Recipe, attentions: int) -> tuple[int, ...]:
    layer = geometry.layers[0]
    removable = layer.num_kv_heads - recipe.floors.kv_groups if "kv_group" in recipe.units else 0
    if recipe.allocator.name != "uniform":
        return tuple(range(attentions * removable + 1))
    steps = tuple(range(removable + 1))
    if recipe.export == "uniform":
        heads = [(layer.num_kv_heads - n) * layer.group_size for n in steps]
        biases = recipe.bias_compensation
        steps = tuple(n for n in steps if stock_family(geometry, heads[n], biases))
        if not steps:
            raise InvalidInput(
                "export", f"no stock class holds this {geometry.family} with biases; use per_layer"
            )
    return tuple(n * attentions for n in steps)


def _check_blocks(geometry: Geometry, recipe: Recipe) -> None:
    blocks, most = recipe.blocks, len(geometry.layers) - 1
    for name, count in (("attention", blocks.attention), ("mlp", blocks.mlp)):
        if count > most:
            raise InvalidInput(f"blocks.{name}", f"at most {most}: one must stay")
    if recipe.export == "uniform" and blocks.attention != blocks.mlp:
        raise InvalidInput("export", "uniform keeps whole layers; remove as many mlp as attention")


def _check_target(geometry: Geometry, recipe: Recipe) -> None:
    room, body = _room(geometry, recipe), geometry.body_parameters
    wanted = recipe.target * body
    if wanted > room.largest:
        reach = math.floor(room.largest / body * 1e4) / 1e4
        raise InvalidInput(
            "target",
            f"the largest reachable target is {reach} with these units, blocks and floors",
            code="target_unreachable",
        )
    if wanted < room.blocks:
        least = math.ceil(room.blocks / body * 1e4) / 1e4
        raise InvalidInput("target", f"the blocks alone are {least}; give more or fewer blocks")
