"""What a recipe would leave of a base, told before anything is computed (torch-free)."""

from dataclasses import replace

from pydantic import BaseModel, ConfigDict

from pruning.allocation import budget
from pruning.allocation.spread import even, level
from pruning.geometry import Geometry
from pruning.plan import Widths
from pruning.recipe import Recipe
from pruning.reports.report import Size, size_of


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerWidths(_Frozen):
    """What stays of a layer, and what it has."""

    layer: int
    kv_groups: int
    dense_kv_groups: int
    heads: int
    dense_heads: int
    ffn_channels: int
    dense_ffn_channels: int


class Preview(_Frozen):
    """A base before and after a cut that nobody has made; `slim` is None if only times can tell.

    `exact` says that the widths are those of the plan; else the job decides how they differ from
    layer to layer, and those shown are alike but add up to the same size.
    """

    dense: Size
    slim: Size | None
    layers: tuple[LayerWidths, ...]
    exact: bool
    notes: tuple[str, ...]


def preview(geometry: Geometry, recipe: Recipe, weight_bytes: int) -> Preview:
    """What `recipe` would leave of a dense base whose weight files have so many bytes.

    Raises InvalidInput, as `budget.check` does, for a recipe that cannot be run on the base.
    """
    budget.check(geometry, recipe)
    dense = size_of(geometry, weight_bytes)
    if recipe.size and recipe.size.latency_ms and recipe.size.table is None:
        notes = ("the worker measures decoding steps first; only then the size is known",)
        return Preview(dense=dense, slim=None, layers=(), exact=False, notes=notes)
    space = budget.any_space(geometry, recipe)
    kept = even(space) if space.even else level(space)
    slim = _narrowed(geometry, kept, recipe)
    share = weight_bytes / geometry.parameters
    removes = bool(recipe.blocks.attention or recipe.blocks.mlp)
    return Preview(
        dense=dense,
        slim=size_of(slim, round(slim.parameters * share)),
        layers=tuple(
            LayerWidths(
                layer=i,
                kv_groups=after.num_kv_heads,
                dense_kv_groups=before.num_kv_heads,
                heads=after.num_heads,
                dense_heads=before.num_heads,
                ffn_channels=after.intermediate_size,
                dense_ffn_channels=before.intermediate_size,
            )
            for i, (before, after) in enumerate(zip(geometry.layers, slim.layers, strict=True))
        ),
        exact=space.even and not removes and recipe.schedule.name != "until_stop",
        notes=_notes(recipe, space.even, removes),
    )


def _narrowed(geometry: Geometry, kept: Widths, recipe: Recipe) -> Geometry:
    """The geometry of what stays, biases that are gained included; absent blocks have no units."""
    layers = []
    for dense, groups, channels in zip(
        geometry.layers, kept.kv_groups, kept.ffn_channels, strict=True
    ):
        per_group = kept.heads_per_group or dense.group_size
        narrow = replace(
            dense,
            num_heads=groups * per_group,
            num_kv_heads=groups,
            intermediate_size=channels,
            o_bias=dense.o_bias or recipe.bias_compensation,
            down_bias=dense.down_bias or recipe.bias_compensation,
        )
        layers.append(narrow)
    return replace(geometry, layers=tuple(layers)).with_hidden(recipe.hidden_size)


def _notes(recipe: Recipe, is_even: bool, removes: bool) -> tuple[str, ...]:
    notes = []
    if not is_even:
        notes.append(f"{recipe.allocator.name} decides how widths differ from layer to layer")
    if removes:
        notes.append("scores decide which blocks leave; the last ones are shown")
    if recipe.schedule.name == "until_stop":
        notes.append("until_stop may end before the target")
    return tuple(notes)
