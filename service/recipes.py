"""From a recipe, which speaks in names, to a spec, which a worker can run: resolved and checked."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from pruning.adapters.jobs import (
    AdapterSpec,
    CompareRecipe,
    Cut,
    Input,
    MergeRecipe,
    ProfileRecipe,
    SourcedRecipe,
    SourceSpec,
    results,
)
from pruning.allocation import budget
from pruning.errors import InvalidInput
from pruning.recipe import PruneSpec, Recipe
from pruning.sweeps.recipe import SweepRecipe, SweepSpec
from service.catalog import Catalog
from service.datasets import Datasets
from service.errors import Conflict
from service.records import Base
from service.texts import Texts, lookup


def resolve(recipe: Recipe, catalog: Catalog, datasets: Datasets) -> PruneSpec:
    """Look up every name of a recipe; InvalidInput names the one that is unknown or unfit.

    Conflict when the name of the slim base to be is taken.
    """
    spec = _resolved(recipe, catalog, datasets)
    if any(taken.name == recipe.name for taken in catalog.bases()):
        raise Conflict(
            f"base {recipe.name!r} exists already; delete it or choose another name", param="name"
        )
    if catalog.find_alias(recipe.name):
        raise Conflict(f"{recipe.name!r} is an alias; choose another name", param="name")
    return spec


def resolve_sweep(recipe: SweepRecipe, catalog: Catalog, datasets: Datasets) -> SweepSpec:
    """Look up every name of all cells; InvalidInput names what is wrong in the grid or beside it.

    What cells would be called may be taken: they are served under no name.
    """
    cells = []
    for number, cell in enumerate(recipe.cells()):
        try:
            cells.append(_resolved(cell, catalog, datasets))
        except InvalidInput as error:
            raise recipe.blamed(error, number) from error
    return SweepSpec(recipe=recipe, cells=tuple(cells))


def _resolved(recipe: Recipe, catalog: Catalog, datasets: Datasets) -> PruneSpec:
    base = lookup("base", lambda: catalog.base(recipe.base))
    budget.check(base.geometry, recipe)
    registered = {adapter.name: adapter.path.absolute() for adapter in catalog.adapters(base.name)}
    names = tuple(registered) if recipe.adapters == "all" else recipe.adapters
    adapters = {name: known(registered, base, name) for name in names}
    if recipe.fleet:
        recipe.fleet.check(names)
    texts = Texts(catalog, datasets, adapters)
    return PruneSpec(
        recipe=recipe,
        base=base.path.absolute(),
        adapters=adapters,
        calibration=texts.paths(recipe.calibration, "calibration"),
        training=texts.paths(recipe.training, "training") if recipe.training else None,
        fleet_texts={
            name: texts.paths(text, f"fleet.texts.{name}")
            for name, text in (recipe.fleet.texts.items() if recipe.fleet else ())
        },
        evaluation=texts.path(recipe.evaluation, "evaluation"),
    )


def resolve_adapters(recipe: SourcedRecipe, catalog: Catalog, datasets: Datasets) -> AdapterSpec:
    """Look up every name of a recipe about adapters; InvalidInput names what is unknown or unfit.

    Sources may be of the recipe's base, of its dense parent, or of other slim bases of it.
    Conflict when a name to be is taken.
    """
    if isinstance(recipe, ProfileRecipe):
        return _resolve_profile(recipe, catalog, datasets)
    if isinstance(recipe, CompareRecipe):
        return _resolve_comparison(recipe, catalog)
    base = lookup("base", lambda: catalog.base(recipe.base))
    check_free(catalog, base.name, results(recipe))
    inputs = recipe.sources if isinstance(recipe, MergeRecipe) else (Input(adapter=recipe.source),)
    homes = {one.label: _home(one, base, catalog) for one in inputs}
    meets = any(home.id != base.id for home in homes.values())

    def source(one: Input) -> SourceSpec:
        home = homes[one.label]
        found = lookup("sources", lambda: catalog.adapter(home.name, one.adapter))
        cut = _cut(home) if meets else None
        return SourceSpec(path=found.path.absolute(), weight=one.weight, cut=cut)

    sources = {one.label: source(one) for one in inputs}
    cut = _cut(base) if meets else None
    parent = catalog.base_by_id(_root(base)).path.absolute() if meets else None
    return AdapterSpec(
        recipe=recipe,
        base=base.path.absolute(),
        sources=sources,
        parent=parent,
        plan=cut.plan if cut else None,
    )


def _resolve_profile(recipe: ProfileRecipe, catalog: Catalog, datasets: Datasets) -> AdapterSpec:
    base = lookup("base", lambda: catalog.base(recipe.base))
    adapter = lookup("source", lambda: catalog.adapter(base.name, recipe.source))
    path = adapter.path.absolute()
    texts = Texts(catalog, datasets, {adapter.name: path})
    return AdapterSpec(
        recipe=recipe,
        base=base.path.absolute(),
        sources={adapter.name: SourceSpec(path=path)},
        calibration=texts.paths(recipe.text, "calibration"),
    )


def _resolve_comparison(recipe: CompareRecipe, catalog: Catalog) -> AdapterSpec:
    base = lookup("base", lambda: catalog.base(recipe.base))
    registered = {adapter.name: adapter.path.absolute() for adapter in catalog.adapters(base.name)}
    names = tuple(registered) if recipe.adapters == "all" else recipe.adapters
    found = {name: SourceSpec(path=known(registered, base, name)) for name in names}
    if len(found) < 2:
        raise InvalidInput("adapters", "a comparison takes two adapters or more")
    return AdapterSpec(recipe=recipe, base=base.path.absolute(), sources=found)


def known(registered: Mapping[str, Path], base: Base, name: str) -> Path:
    """The directory of a base's adapter; InvalidInput lists those that there are."""
    if name not in registered:
        names = ", ".join(registered) or "none"
        raise InvalidInput(
            "adapters", f"base {base.name!r} has no adapter {name!r}; it has: {names}"
        )
    return registered[name]


def check_free(catalog: Catalog, base: str, names: Iterable[str]) -> None:
    """Raise Conflict where the base has an adapter or a composition of one of these names."""
    taken = {adapter.name for adapter in catalog.adapters(base)}
    taken |= {named.name for named in catalog.compositions(base)}
    for name in names:
        if name in taken:
            raise Conflict(
                f"adapter {base}+{name} exists already; choose another name", param="name"
            )


def _home(one: Input, base: Base, catalog: Catalog) -> Base:
    """The base that a source is registered with, of the same family as the recipe's."""
    name = one.base
    if name is None:
        return base
    home = lookup("sources", lambda: catalog.base(name))
    if _root(home) != _root(base):
        raise InvalidInput(
            "sources",
            f"{one.label} is of the base {home.name!r}, which shares no parent with {base.name!r}; "
            "name adapters of one dense base and of its slim bases",
            code="adapter_mismatch",
        )
    return home


def _root(base: Base) -> str:
    return base.parent or base.id


def _cut(base: Base) -> Cut | None:
    if base.parent is None:
        return None
    path = base.path.absolute()
    return Cut(base=path, plan=path.parent / "plan.json")
