"""The catalog: names, dependents, and content that lives exactly as long as its rows."""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pruning.errors import InvalidInput
from pruning.recipe import PruneSpec, Recipe, Text
from service.catalog import Catalog
from service.errors import Conflict, NotFound

DIGEST = "0123456789ab" + "0" * 52


@pytest.fixture(params=["sqlite", "postgresql"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalog]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'catalog.db'}"
    else:
        server: str = request.getfixturevalue("postgres")
        url = server.replace("postgresql://", "postgresql+psycopg://")
    catalog = Catalog(url)
    yield catalog
    catalog.close()


@pytest.fixture
def published(
    tmp_path: Path, write_base: Callable[..., Path], write_adapter: Callable[..., Path]
) -> tuple[PruneSpec, Path]:
    """A job's specification, and an artifact as the job leaves it."""
    artifact = tmp_path / DIGEST
    write_base(artifact / "model")
    write_adapter(artifact / "adapters" / "first")
    write_adapter(artifact / "adapters" / "second", seed=1)
    text = Text(file="file-1")
    recipe = Recipe(name="slim", base="dense", target=0.3, calibration=text, evaluation=text)
    spec = PruneSpec(
        recipe=recipe, base=tmp_path, adapters={}, calibration=tmp_path, evaluation=tmp_path
    )
    return spec, artifact


def test_a_base_is_found_by_its_name_with_its_geometry(catalog: Catalog, base_directory: Path):
    added = catalog.add_base("demo", base_directory, DIGEST)
    assert catalog.base("demo") == added
    assert added.geometry.hidden_size == 16
    assert catalog.bases(serve=True) == (added,)
    assert catalog.bases(serve=False) == ()


def test_an_adapter_has_a_name_for_requests_and_one_for_its_content(
    catalog: Catalog, base_directory: Path, adapter_directory: Path
):
    catalog.add_base("demo", base_directory, DIGEST)
    adapter = catalog.add_adapter("demo", "sql", adapter_directory, DIGEST, rank=2)
    assert adapter.model == "demo+sql"
    assert adapter.engine_name == "demo+sql@0123456789ab"
    assert catalog.adapters("demo") == (adapter,) == catalog.adapters()


def test_names_are_unique_and_unknown_ones_are_not_found(
    catalog: Catalog, base_directory: Path, tmp_path: Path
):
    catalog.add_base("demo", base_directory, DIGEST)
    catalog.add_adapter("demo", "sql", tmp_path, DIGEST, rank=2)
    with pytest.raises(Conflict, match="'demo' exists"):
        catalog.add_base("demo", base_directory, DIGEST)
    with pytest.raises(Conflict, match="demo\\+sql exists"):
        catalog.add_adapter("demo", "sql", tmp_path, DIGEST, rank=2)
    with pytest.raises(NotFound, match="'other' does not exist"):
        catalog.add_adapter("other", "sql", tmp_path, DIGEST, rank=2)
    with pytest.raises(NotFound, match="demo\\+prose"):
        catalog.adapter("demo", "prose")
    with pytest.raises(NotFound):
        catalog.set_serve("other", False)


def test_a_base_in_use_cannot_be_deleted_and_says_what_uses_it(
    catalog: Catalog, base_directory: Path, tmp_path: Path
):
    catalog.add_base("demo", base_directory, DIGEST)
    catalog.add_base("slim", base_directory, DIGEST, parent="demo")
    catalog.add_adapter("demo", "sql", tmp_path, DIGEST, rank=2)
    with pytest.raises(Conflict, match="adapter demo\\+sql, slim base slim"):
        catalog.delete_base("demo")
    catalog.delete_adapter("demo", "sql")
    catalog.delete_base("slim")
    catalog.delete_base("demo")
    assert catalog.bases() == ()


def test_content_goes_only_with_the_last_row_that_refers_to_it(
    catalog: Catalog, base_directory: Path, adapter_directory: Path
):
    for base in ("one", "two"):
        catalog.add_base(base, base_directory, DIGEST)
        catalog.add_adapter(base, "sql", adapter_directory, DIGEST, rank=2)
    for base, remains in (("one", True), ("two", False)):
        catalog.delete_adapter(base, "sql")
        catalog.release(adapter_directory, shutil.rmtree)
        assert adapter_directory.exists() is remains


def test_a_row_whose_content_cannot_be_placed_is_not_kept(
    catalog: Catalog, base_directory: Path, tmp_path: Path
):
    def fail() -> None:
        raise OSError("disk full")

    catalog.add_base("demo", base_directory, DIGEST)
    with pytest.raises(OSError, match="disk full"):
        catalog.add_adapter("demo", "sql", tmp_path, DIGEST, rank=2, place=fail)
    assert catalog.adapters() == ()


def test_the_same_text_again_is_the_same_file(catalog: Catalog, tmp_path: Path):
    first = catalog.add_file(tmp_path / "a", DIGEST, "a.txt", "calibration", 3)
    assert first.id == "file-" + DIGEST[:24]
    assert catalog.add_file(tmp_path / "b", DIGEST, "b.txt", "evaluation", 3) == first
    assert catalog.delete_file(first.id) == first
    assert catalog.files() == ()


def test_publishing_registers_the_slim_base_with_its_adapters(
    catalog: Catalog, published: tuple[PruneSpec, Path], base_directory: Path
):
    spec, artifact = published
    catalog.add_base("dense", base_directory, DIGEST)
    catalog.publish_artifact(spec, artifact, DIGEST)
    base = catalog.base("slim")
    assert (base.parent, base.artifact, base.serve) == ("dense", DIGEST, True)
    assert base.path == artifact / "model"
    assert [adapter.model for adapter in catalog.adapters("slim")] == ["slim+first", "slim+second"]
    assert catalog.adapter("slim", "first").path == artifact / "adapters" / "first"


def test_publishing_again_changes_nothing_and_completes_what_was_cut_short(
    catalog: Catalog, published: tuple[PruneSpec, Path]
):
    spec, artifact = published
    catalog.publish_artifact(spec, artifact, DIGEST)
    before = catalog.bases(), catalog.adapters()
    catalog.delete_adapter("slim", "second")
    catalog.publish_artifact(spec, artifact, DIGEST)
    bases, adapters = catalog.bases(), catalog.adapters()
    assert bases == before[0]
    assert [a.digest for a in adapters] == [a.digest for a in before[1]]


def test_publishing_under_a_name_of_something_else_is_a_conflict(
    catalog: Catalog, published: tuple[PruneSpec, Path]
):
    spec, artifact = published
    catalog.add_base("slim", artifact / "model", DIGEST)
    with pytest.raises(InvalidInput, match="'slim' exists already"):
        catalog.publish_artifact(spec, artifact, DIGEST)
    assert catalog.adapters() == ()


def test_an_alias_that_was_made_meanwhile_keeps_its_name(
    catalog: Catalog, published: tuple[PruneSpec, Path], base_directory: Path
):
    catalog.add_base("dense", base_directory, DIGEST)
    catalog.promote("slim", "dense")
    with pytest.raises(InvalidInput, match="alias 'slim' exists already"):
        catalog.publish_artifact(*published, DIGEST)
    assert [base.name for base in catalog.bases()] == ["dense"]
    assert catalog.adapters() == ()


def test_many_writers_at_once_take_turns(catalog: Catalog, base_directory: Path, tmp_path: Path):
    catalog.add_base("demo", base_directory, DIGEST)

    def add(number: int) -> str | None:
        try:
            return catalog.add_adapter("demo", f"a{number % 20}", tmp_path, DIGEST, 2).name
        except Conflict:
            return None

    with ThreadPoolExecutor(8) as pool:
        added = [name for name in pool.map(add, range(40)) if name]
    assert sorted(added) == sorted(adapter.name for adapter in catalog.adapters())
    assert len(added) == 20
