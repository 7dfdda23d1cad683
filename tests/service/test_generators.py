"""Generators in the catalog: entered once by whoever publishes, in the way of their base."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pruning.adapters.generate.recipes import TrainGeneratorRecipe, TrainGeneratorSpec
from pruning.digest import tree_digest
from pruning.errors import InvalidInput
from service.catalog import Catalog
from service.errors import Conflict, NotFound


@pytest.fixture
def catalog(tmp_path: Path, base_directory: Path) -> Iterator[Catalog]:
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.sqlite'}")
    catalog.add_base("demo", base_directory, tree_digest(base_directory))
    yield catalog
    catalog.close()


@pytest.fixture
def spec(base_directory: Path, tmp_path: Path) -> TrainGeneratorSpec:
    tasks = {"one": {"file": "file-1"}, "two": {"file": "file-2"}}
    recipe = {"name": "maker", "base": "demo", "tasks": tasks}
    return TrainGeneratorSpec(
        recipe=TrainGeneratorRecipe.model_validate(recipe),
        base=base_directory,
        rows={task: tmp_path / task for task in tasks},
    )


def test_publishing_again_changes_nothing(
    catalog: Catalog, spec: TrainGeneratorSpec, tmp_path: Path
):
    for _ in range(2):
        catalog.publish(spec, tmp_path / "artifact", "a" * 64)
    (generator,) = catalog.generators("demo")
    assert generator == catalog.generator("demo", "maker")
    assert (generator.id, generator.digest) == ("demo+maker", "a" * 64)
    assert generator.path == tmp_path / "artifact"


def test_a_name_that_is_taken_is_kept(catalog: Catalog, spec: TrainGeneratorSpec, tmp_path: Path):
    catalog.publish(spec, tmp_path / "artifact", "a" * 64)
    with pytest.raises(InvalidInput, match="choose another name"):
        catalog.publish(spec, tmp_path / "other", "b" * 64)
    assert catalog.generator("demo", "maker").digest == "a" * 64


def test_a_base_stays_while_it_has_a_generator(
    catalog: Catalog, spec: TrainGeneratorSpec, tmp_path: Path
):
    catalog.publish(spec, tmp_path / "artifact", "a" * 64)
    with pytest.raises(Conflict, match=r"generator demo\+maker"):
        catalog.delete_base("demo")
    catalog.delete_generator("demo", "maker")
    catalog.delete_base("demo")
    with pytest.raises(NotFound):
        catalog.generator("demo", "maker")


def test_a_generator_belongs_to_the_tenant_whose_job_made_it(
    catalog: Catalog, spec: TrainGeneratorSpec, tmp_path: Path
):
    catalog.publish(spec.model_copy(update={"tenant": "acme"}), tmp_path / "artifact", "a" * 64)
    assert catalog.generators() == ()
    (own,) = catalog.of("acme").generators()
    assert (own.tenant, own.name) == ("acme", "maker")
    catalog.publish(spec, tmp_path / "other", "b" * 64)  # the same name, of another tenant
    assert catalog.generator("demo", "maker").digest == "b" * 64
