"""Both jobs on a small base: a generator is published, asked, refused when damaged or too far."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from pruning import artifacts, evaluation
from pruning.adapters import algebra, atoms, pipeline
from pruning.adapters.algebra import bags_of
from pruning.adapters.generate.generator import FILE
from pruning.adapters.generate.recipes import (
    GenerateRecipe,
    GenerateSpec,
    GenerationReport,
    GeneratorReport,
    TrainGeneratorRecipe,
    TrainGeneratorSpec,
)
from pruning.adapters.merging import merge_all
from pruning.adapters.peft_format import read_adapter
from pruning.adapters.source import open_source
from pruning.digest import file_digest, tree_digest
from pruning.errors import InvalidInput
from pruning.geometry import Geometry
from pruning.recipe import Method
from pruning.registry import merge
from pruning.text import load_tokenizer

STRANGE = [{"prompt": "\\/\\/", "completion": "\t~~" * (1 + i % 3)} for i in range(8)]


def silent(fraction: float, message: str) -> None:
    assert 0 <= fraction <= 1


@pytest.fixture(scope="module")
def generator(
    training: Callable[..., TrainGeneratorSpec], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The artifact of a generator of three tasks."""
    work = tmp_path_factory.mktemp("training")
    return pipeline.run(training(), work, tmp_path_factory.mktemp("store"), silent)


@pytest.fixture
def request_(
    generator: Path, dense_base: Callable[[str], Path], lines: Callable[[str, int], str]
) -> Callable[..., GenerateSpec]:
    """A request by examples of `letters` that training has not seen, with some entries changed."""

    def make(generator: Path = generator, base: str = "llama", **changes: Any) -> GenerateSpec:
        recipe = {"name": "made", "base": "dense", "generator": "maker", "samples": 3, **changes}
        if "description" not in recipe:
            rows = lines("letters", 60).splitlines()[40:52]
            recipe.setdefault("examples", [json.loads(row) for row in rows])
        return GenerateSpec(
            recipe=GenerateRecipe.model_validate(recipe),
            base=dense_base(base),
            generator=generator,
        )

    return make


def test_a_trained_generator_is_an_artifact_with_what_it_recovers(
    generator: Path, training: Callable[..., TrainGeneratorSpec]
):
    manifest, spec = artifacts.verify(generator), training()
    assert (manifest.kind, manifest.digest) == ("generator", generator.name)
    assert manifest.parents.base == tree_digest(spec.base)
    assert manifest.parents.texts == {
        f"tasks.{task}": file_digest(path) for task, path in spec.rows.items()
    }
    report = GeneratorReport.model_validate_json((generator / "report.json").read_bytes())
    assert [task.task for task in report.tasks] == ["digits", "letters", "marks"]
    for task in report.tasks:
        assert task.own < task.base
        assert task.rows == 8
        assert task.recovered == pytest.approx(
            (task.base - task.generated) / (task.base - task.own)
        )
        assert task.recovered > 0.8
    assert report.bytes == (generator / FILE).stat().st_size
    assert (report.break_even - 1) * report.adapter_bytes < report.bytes
    assert report.bytes <= report.break_even * report.adapter_bytes


def test_examples_of_a_known_task_give_an_adapter_that_is_better_on_them_than_the_base(
    request_: Callable[..., GenerateSpec], generator: Path, tmp_path: Path
):
    spec = request_()
    artifact = pipeline.run(spec, tmp_path / "work", tmp_path / "store", silent)
    manifest = artifacts.verify(artifact)
    made = manifest.generated
    assert manifest.kind == "adapter"
    assert made is not None
    assert made.generator == generator.name
    assert (made.condition, made.nearest_task, made.forced) == ("examples", "letters", False)
    assert made.distance <= made.largest_distance
    report = GenerationReport.model_validate_json((artifact / "report.json").read_bytes())
    assert len(report.losses) == 3
    assert report.losses[made.sample] == min(report.losses) < 0.8 * (report.base or 0)
    directory = artifact / "adapters" / "made"
    info = read_adapter(directory, Geometry.of(spec.base))
    assert (info.rank, info.dtype) == (2, "F16")
    assert len((directory / "calibration.jsonl").read_text().splitlines()) == 12
    again = pipeline.run(request_(), tmp_path / "again", tmp_path / "store", silent)
    assert again == artifact


def test_peft_loads_a_generated_adapter_and_it_does_what_the_report_says(
    request_: Callable[..., GenerateSpec], tmp_path: Path
):
    spec = request_(samples=1)
    artifact = pipeline.run(spec, tmp_path / "work", tmp_path / "store", silent)
    report = GenerationReport.model_validate_json((artifact / "report.json").read_bytes())
    model = evaluation.with_adapter(evaluation.load(spec.base), artifact / "adapters" / "made")
    rows = artifact / "adapters" / "made" / "calibration.jsonl"
    examples = evaluation.rows(load_tokenizer(spec.base), rows, 64, "made")
    found = evaluation.completion_loss(model, examples, silent)
    assert found == pytest.approx(report.losses[0], rel=1e-3)


def test_a_description_of_a_known_task_gives_its_adapter(
    request_: Callable[..., GenerateSpec], tmp_path: Path
):
    spec = request_(description="It writes marks.")
    artifact = pipeline.run(spec, tmp_path / "work", tmp_path / "store", silent)
    made = artifacts.read(artifact).generated
    assert made is not None
    assert (made.condition, made.nearest_task, made.samples) == ("description", "marks", 1)
    assert made.distance == pytest.approx(0, abs=1e-3)
    report = GenerationReport.model_validate_json((artifact / "report.json").read_bytes())
    assert (report.examples, report.base, report.losses) == (0, None, ())
    assert not (artifact / "adapters" / "made" / "calibration.jsonl").exists()


def test_a_generated_adapter_is_merged_as_any_other(
    request_: Callable[..., GenerateSpec], tmp_path: Path
):
    spec = request_()
    artifact = pipeline.run(spec, tmp_path / "work", tmp_path / "store", silent)
    directory = artifact / "adapters" / "made"
    source = open_source("made", directory, Geometry.of(spec.base))
    function, _, params = merge(Method(name="cat"))
    merged = {k: m.bag for k, m, _ in merge_all([source], {"made": 2.0}, function, params, 0)}
    for key, bag in bags_of(atoms.read(directory, "made")).items():
        torch.testing.assert_close(merged[key].delta, algebra.scale(bag, 2.0).delta)


def test_examples_of_no_known_task_are_refused_unless_forced(
    request_: Callable[..., GenerateSpec], tmp_path: Path
):
    with pytest.raises(InvalidInput) as refused:
        pipeline.run(request_(examples=STRANGE), tmp_path / "work", tmp_path / "store", silent)
    assert (refused.value.field, refused.value.code) == ("examples", "too_far")
    assert "set force" in refused.value.message
    assert not (tmp_path / "store").exists()
    forced = request_(examples=STRANGE, force=True)
    artifact = pipeline.run(forced, tmp_path / "work", tmp_path / "store", silent)
    made = artifacts.verify(artifact).generated
    assert made is not None
    assert made.forced
    assert made.distance > made.largest_distance
    near = pipeline.run(request_(force=True), tmp_path / "near", tmp_path / "store", silent)
    known = artifacts.read(near).generated
    assert known is not None
    assert not known.forced  # it did not have to be


def test_a_damaged_generator_is_refused_with_the_digest_that_differs(
    request_: Callable[..., GenerateSpec], generator: Path, tmp_path: Path
):
    damaged = tmp_path / generator.name
    shutil.copytree(generator, damaged)
    content = bytearray((damaged / FILE).read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / FILE).write_bytes(content)
    with pytest.raises(InvalidInput) as refused:
        pipeline.run(request_(damaged), tmp_path / "work", tmp_path / "store", silent)
    assert (refused.value.field, refused.value.code) == ("generator", "damaged_generator")
    assert FILE in refused.value.message
    assert "SHA-256" in refused.value.message
    assert not (tmp_path / "store").exists()


def test_a_generator_of_another_base_is_refused(
    request_: Callable[..., GenerateSpec], tmp_path: Path
):
    with pytest.raises(InvalidInput, match="another base") as refused:
        pipeline.run(request_(base="qwen3"), tmp_path / "work", tmp_path / "store", silent)
    assert refused.value.code == "adapter_mismatch"


def test_a_generator_without_descriptions_asks_for_examples(
    training: Callable[..., TrainGeneratorSpec],
    request_: Callable[..., GenerateSpec],
    tmp_path: Path,
):
    spec = training(
        tasks={t: {"file": f"{t}.jsonl"} for t in ("digits", "letters", "marks")},
        families={"rank": 1, "steps": 3, "checkpoints": 1, "batch": 2, "length": 16},
        network={"steps": 3},
    )
    plain = pipeline.run(spec, tmp_path / "training", tmp_path / "store", silent)
    asked = request_(plain, description="It writes marks.")
    with pytest.raises(InvalidInput, match="give examples") as refused:
        pipeline.run(asked, tmp_path / "work", tmp_path / "store", silent)
    assert refused.value.field == "description"


def test_too_few_rows_and_unknown_linears_are_refused_by_name(
    training: Callable[..., TrainGeneratorSpec], tmp_path: Path
):
    spec = training()
    (tmp_path / "rows").write_text('{"prompt": "a", "completion": "b"}\n' * 4)
    few = spec.model_copy(update={"rows": spec.rows | {"marks": tmp_path / "rows"}})
    with pytest.raises(InvalidInput, match="5 or more") as refused:
        pipeline.run(few, tmp_path / "work", tmp_path / "store", silent)
    assert refused.value.field == "tasks.marks"
    unknown = training(families={"linears": ["query"]})
    with pytest.raises(InvalidInput, match="q_proj") as refused:
        pipeline.run(unknown, tmp_path / "work", tmp_path / "store", silent)
    assert refused.value.field == "families.linears"


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({}, "either examples or a description"),
        ({"description": "x", "examples": {"file": "f"}}, "either examples or a description"),
        ({"examples": [{"completion": "x"}] * 3}, "4 to 64"),
        ({"examples": {"file": "f", "field": "text"}}, "leave field out"),
        ({"examples": {"file": "f", "adapter": "a"}}, "one of file"),
        ({"description": "x", "samples": 0}, "greater than or equal to 1"),
    ],
)
def test_requests_that_cannot_be_are_refused(changes: dict[str, Any], hint: str):
    recipe = {"name": "made", "base": "demo", "generator": "maker", **changes}
    with pytest.raises(ValidationError, match=hint):
        GenerateRecipe.model_validate(recipe)


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"tasks": {"one": {"file": "f"}}}, "at least 2"),
        ({"tasks": {"a": {"file": "f", "description": "d"}, "b": {"file": "f"}}}, "all tasks or"),
        ({"families": {"steps": 9, "checkpoints": 4}}, "last third"),
        ({"tasks": {"a": {"file": "f"}, "b": {}}}, "one of file"),
    ],
)
def test_trainings_that_cannot_be_are_refused(changes: dict[str, Any], hint: str):
    tasks = {"a": {"file": "f"}, "b": {"file": "f"}}
    recipe = {"name": "maker", "base": "demo", "tasks": tasks, **changes}
    with pytest.raises(ValidationError, match=hint):
        TrainGeneratorRecipe.model_validate(recipe)
