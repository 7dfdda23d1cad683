"""What a recipe asks to save, in its own measure: parameters, bytes or nanoseconds (torch-free).

Counted are the weights that leave; a bias gained by compensation is not charged to the target.
"""

from dataclasses import dataclass

from pruning.allocation.latency import LatencyTable, line
from pruning.geometry import Geometry
from pruning.recipe import Recipe

NANOSECONDS = 1e6  # of a millisecond


@dataclass(frozen=True)
class Costs:
    """What is saved when something leaves, alike in all layers of a dense base."""

    kv_group: float
    ffn_channel: float
    attention: float  # the whole block, its norms and biases included
    mlp: float
    base: float  # all there is


def costs(geometry: Geometry, recipe: Recipe) -> Costs:
    """The costs in bytes for a size in bytes, by the lines through a table's times in nanoseconds
    for a latency, else in parameters.

    A KV group of b-byte values costs b · (its parameters + 2 · head_dim · context): its keys and
    values lie in the cache once for every token.
    """
    size, groups = recipe.size, geometry.layers[0].num_kv_heads
    if size is not None and size.latency_ms is not None:
        assert size.table is not None
        return _times(geometry, size.table)
    counted_in_bytes = size is not None and size.bytes is not None
    unit = size.value_bytes if size and counted_in_bytes else 1
    cache = 2 * geometry.head_dim * size.context if size and counted_in_bytes else 0
    return Costs(
        kv_group=unit * (geometry.kv_group_parameters(0) + cache),
        ffn_channel=unit * geometry.ffn_channel_parameters(0),
        attention=unit * (geometry.attention_parameters(0) + groups * cache),
        mlp=unit * geometry.mlp_parameters(0),
        base=unit * (geometry.parameters + len(geometry.layers) * groups * cache),
    )


def wanted(geometry: Geometry, recipe: Recipe) -> float:
    """How much is to be saved, in the measure of `costs`."""
    if recipe.target is not None:
        return recipe.target * geometry.body_parameters
    assert recipe.size is not None
    unit = NANOSECONDS if recipe.size.measure == "latency_ms" else 1
    return costs(geometry, recipe).base - unit * recipe.size.amount


def saved_by_hidden(geometry: Geometry, recipe: Recipe) -> float:
    """How much the recipe's hidden size alone saves, in the measure of `costs`."""
    narrow = geometry.with_hidden(recipe.hidden_size)
    if recipe.target is not None:
        return geometry.body_parameters - narrow.body_parameters
    return costs(geometry, recipe).base - costs(narrow, recipe).base


def _times(geometry: Geometry, table: LatencyTable) -> Costs:
    dense = geometry.layers[0]
    attention, kv_group = line(table.attention)
    mlp, ffn_channel = line(table.mlp)
    attention += kv_group * dense.num_kv_heads
    mlp += ffn_channel * dense.intermediate_size
    whole = table.rest + len(geometry.layers) * (attention + mlp)
    return Costs(*(NANOSECONDS * ms for ms in (kv_group, ffn_channel, attention, mlp, whole)))
