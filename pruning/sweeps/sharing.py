"""What cells of a sweep have in common, so that it is computed once (torch-free)."""

import json
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from pruning.recipe import PruneSpec, Recipe

Key = Callable[[PruneSpec], Hashable]


def groups(cells: Sequence[PruneSpec], key: Key) -> list[list[int]]:
    """The cells of each value of `key`, by their numbers; those of None are in no group."""
    found: dict[Hashable, list[int]] = {}
    for number, cell in enumerate(cells):
        if (value := key(cell)) is not None:
            found.setdefault(value, []).append(number)
    return list(found.values())


def calibration(cell: PruneSpec) -> str | None:
    """What the calibrate stage depends on, but for the statistics that methods need.

    None for a schedule of several cuts, which calibrates on bases that it made itself.
    """
    recipe = cell.recipe
    if recipe.schedule.name != "one_shot":
        return None
    fields = {"calibration", "seed", "sink_tokens", "hidden_size"}
    if recipe.fleet:
        fields |= {"fleet", "adapters", "criterion"}  # tenants are calibrated for one criterion
    return _of(recipe, fields, _timed(recipe))


def scores(cell: PruneSpec) -> str | None:
    """What the scores of units depend on."""
    common = calibration(cell)
    return common and common + _of(cell.recipe, {"criterion", "units"})


def reference(cell: PruneSpec) -> str:
    """What the measurements of the dense base depend on."""
    return json.dumps(sorted(cell.adapters))


def _of(recipe: Recipe, fields: set[str], *more: Any) -> str:
    return json.dumps([recipe.model_dump(mode="json", include=fields), *more], sort_keys=True)


def _timed(recipe: Recipe) -> Any:
    """What blocks are timed for, if the recipe aims at a latency."""
    if recipe.size is None or recipe.size.latency_ms is None:
        return None
    return recipe.size.model_dump(mode="json", exclude={"latency_ms"})
