"""Recipes about generators, from names to what a worker can run: resolved and checked."""

from pathlib import Path

from pruning.adapters.generate.recipes import (
    GenerateRecipe,
    GenerateSpec,
    Rows,
    TrainGeneratorRecipe,
    TrainGeneratorSpec,
)
from pruning.errors import InvalidInput
from service.catalog import Catalog
from service.datasets import Datasets
from service.errors import Conflict
from service.recipes import check_free
from service.records import Base
from service.texts import Texts, lookup


def resolve_training(
    recipe: TrainGeneratorRecipe, catalog: Catalog, datasets: Datasets
) -> TrainGeneratorSpec:
    """Look up every name of a recipe that trains a generator; InvalidInput names the unknown one.

    Conflict when the base has a generator of this name.
    """
    base = lookup("base", lambda: catalog.base(recipe.base))
    if any(known.name == recipe.name for known in catalog.generators(base.name)):
        raise Conflict(
            f"generator {base.name}+{recipe.name} exists already; choose another name",
            param="name",
        )
    recipe.families.check(base.geometry.architecture.linears)
    texts = _texts(base, catalog, datasets)
    rows = {task: texts.path(rows, f"tasks.{task}") for task, rows in recipe.tasks.items()}
    return TrainGeneratorSpec(recipe=recipe, base=base.path.absolute(), rows=rows)


def resolve_generation(
    recipe: GenerateRecipe, catalog: Catalog, datasets: Datasets
) -> GenerateSpec:
    """Look up the generator and the examples; InvalidInput names what is unknown.

    Conflict when the name to be is taken.
    """
    base = lookup("base", lambda: catalog.base(recipe.base))
    check_free(catalog, base.name, (recipe.name,))
    rows = None
    if isinstance(recipe.examples, Rows):
        rows = _texts(base, catalog, datasets).path(recipe.examples, "examples")
    return GenerateSpec(
        recipe=recipe,
        base=base.path.absolute(),
        generator=_generator(recipe, catalog),
        rows=rows,
    )


def _generator(recipe: GenerateRecipe, catalog: Catalog) -> Path:
    known = catalog.generators(recipe.base)
    for generator in known:
        if recipe.generator in (generator.name, generator.digest):
            return generator.path.absolute()
    names = ", ".join(generator.name for generator in known) or "none; train one first"
    raise InvalidInput(
        "generator",
        f"base {recipe.base!r} has no generator {recipe.generator!r}; it has: {names}",
        code="not_found",
    )


def _texts(base: Base, catalog: Catalog, datasets: Datasets) -> Texts:
    own = {adapter.name: adapter.path.absolute() for adapter in catalog.adapters(base.name)}
    return Texts(catalog, datasets, own)
