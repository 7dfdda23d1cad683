"""From a recipe, which speaks in names, to a spec, which a worker can run: resolved and checked."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pruning import budget
from pruning.errors import InvalidInput
from pruning.recipe import PruneSpec, Recipe, Text
from service.catalog import Catalog
from service.errors import Conflict, NotFound

Found = TypeVar("Found")


def resolve(recipe: Recipe, catalog: Catalog) -> PruneSpec:
    """Look up every name of a recipe; InvalidInput names the one that is unknown or unfit.

    Conflict when the name of the slim base to be is taken.
    """
    base = _known("base", lambda: catalog.base(recipe.base))
    budget.check(base.geometry, recipe)
    if any(taken.name == recipe.name for taken in catalog.bases()):
        raise Conflict(
            f"base {recipe.name!r} exists already; delete it or choose another name", param="name"
        )
    registered = {adapter.name: adapter.path for adapter in catalog.adapters(base.name)}
    names = tuple(registered) if recipe.adapters == "all" else recipe.adapters
    for name in names:
        if name not in registered:
            known = ", ".join(registered) or "none"
            raise InvalidInput(
                "adapters", f"base {base.name!r} has no adapter {name!r}; it has: {known}"
            )
    if recipe.fleet:
        recipe.fleet.check(names)
    return PruneSpec(
        recipe=recipe,
        base=base.path.absolute(),
        adapters={name: registered[name].absolute() for name in names},
        calibration=_path(recipe.calibration, "calibration", catalog),
        training=_path(recipe.training, "training", catalog) if recipe.training else None,
        fleet_texts={
            name: _path(text, f"fleet.texts.{name}", catalog)
            for name, text in (recipe.fleet.texts.items() if recipe.fleet else ())
        },
        evaluation=_path(recipe.evaluation, "evaluation", catalog),
    )


def _path(text: Text, purpose: str, catalog: Catalog) -> Path:
    return _known(f"{purpose}.file", lambda: catalog.file(text.file)).path.absolute()


def _known(field: str, find: Callable[[], Found]) -> Found:
    try:
        return find()
    except NotFound as error:
        raise InvalidInput(field, f"{error}; register it first", code="not_found") from error
