"""Recipes that train an adapter, from names to what a worker can run: resolved and checked."""

from pruning.adapters.train.recipes import TrainRecipe, TrainSpec
from service.catalog import Catalog
from service.datasets import Datasets
from service.recipes import check_free
from service.texts import Texts, lookup


def resolve_adapter_training(
    recipe: TrainRecipe, catalog: Catalog, datasets: Datasets
) -> TrainSpec:
    """Look up the base and the rows; InvalidInput names what is unknown or unfit.

    Conflict when the name to be is taken.
    """
    base = lookup("base", lambda: catalog.base(recipe.base))
    check_free(catalog, base.name, (recipe.name,))
    recipe.check(base.geometry.architecture.linears, len(base.geometry.layers))
    own = {adapter.name: adapter.path.absolute() for adapter in catalog.adapters(base.name)}
    texts = Texts(catalog, datasets, own)
    return TrainSpec(
        recipe=recipe,
        base=base.path.absolute(),
        training=texts.path(recipe.training, "training"),
        validation=texts.path(recipe.validation, "validation") if recipe.validation else None,
        forget=texts.path(recipe.forget.rows, "forget.rows") if recipe.forget else None,
    )
