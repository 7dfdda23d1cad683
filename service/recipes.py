"""From a recipe, which speaks in names, to a spec, which a worker can run: resolved and checked."""

from collections.abc import Callable
from typing import TypeVar

from pruning import budget
from pruning.errors import InvalidInput
from pruning.recipe import PruneSpec, Recipe
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
    calibration, evaluation = recipe.calibration.file, recipe.evaluation.file
    return PruneSpec(
        recipe=recipe,
        base=base.path.absolute(),
        adapters={name: registered[name].absolute() for name in names},
        calibration=_known("calibration.file", lambda: catalog.file(calibration)).path.absolute(),
        evaluation=_known("evaluation.file", lambda: catalog.file(evaluation)).path.absolute(),
    )


def _known(field: str, find: Callable[[], Found]) -> Found:
    try:
        return find()
    except NotFound as error:
        raise InvalidInput(field, f"{error}; register it first", code="not_found") from error
