"""Merging and compressing as a job, on the bundled adapters: what is published, and what is not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from pruning import artifacts, evaluation
from pruning.adapters import algebra, atoms, carry
from pruning.adapters.compose import profile
from pruning.adapters.jobs import (
    AdapterSpec,
    CompressRecipe,
    Cut,
    JobReport,
    MergeRecipe,
    ProfileRecipe,
    SourceSpec,
)
from pruning.adapters.peft_format import read_adapter
from pruning.adapters.pipeline import run
from pruning.errors import InvalidInput
from pruning.export import slim_config
from pruning.geometry import Geometry
from pruning.plan import LayerPlan, Plan
from pruning.slicing import slice_base
from pruning.stats import Statistics
from pruning.text import calibration_ids, load_tokenizer
from pruning.weights.checkpoint import Checkpoint

DEMO = Path(__file__).parents[3] / "deploy" / "demo"
TASKS = ("e2e_nlg", "wikisql")
ROWS = 4


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, SourceSpec]:
    """Two bundled adapters with a few of their rows."""
    made = {}
    for name in TASKS:
        shutil.copytree(DEMO / "adapters" / name, tmp_path / name)
        rows = (tmp_path / name / "eval.jsonl").read_text().split("\n")[:ROWS]
        (tmp_path / name / "eval.jsonl").write_text("\n".join(rows) + "\n")
        made[name] = SourceSpec(path=tmp_path / name)
    return made


@pytest.fixture
def merging(sources: dict[str, SourceSpec]) -> Callable[..., AdapterSpec]:
    def make(**changes: Any) -> AdapterSpec:
        inputs = [{"adapter": name} for name in TASKS]
        recipe = {"name": "both", "base": "demo", "sources": inputs, **changes}
        return AdapterSpec(
            recipe=MergeRecipe.model_validate(recipe), base=DEMO / "base", sources=sources
        )

    return make


def silent(fraction: float, message: str) -> None:
    assert 0 <= fraction <= 1


def report_of(artifact: Path) -> JobReport:
    return JobReport.model_validate_json((artifact / "report.json").read_bytes())


def test_a_merge_is_published_with_what_survives_of_each_source(
    merging: Callable[..., AdapterSpec], tmp_path: Path
):
    artifact = run(merging(), tmp_path / "work", tmp_path / "store", silent)
    manifest = artifacts.verify(artifact)
    assert (manifest.kind, manifest.digest) == ("adapter", artifact.name)
    assert set(manifest.parents.adapters) == set(TASKS)
    info = read_adapter(artifact / "adapters" / "both", Checkpoint(DEMO / "base").geometry)
    assert (info.rank, info.dtype) == (8, "F16")
    assert len((artifact / "adapters/both/eval.jsonl").read_text().splitlines()) == 2 * ROWS

    (result,) = report_of(artifact).results
    assert set(result.ranks.values()) == {8}
    for task in result.tasks:
        assert task.rows == ROWS
        assert task.own < task.base  # a trained adapter
        assert task.recovered == pytest.approx((task.base - task.result) / (task.base - task.own))
        assert 0.2 < task.recovered < 1  # neither lost nor whole
    origins = json.loads((artifact / "origins.json").read_text())
    assert {origin["source"] for atom in origins["0.q_proj"] for origin in atom} == set(TASKS)

    again = run(merging(), tmp_path / "again", tmp_path / "store", silent)
    assert again == artifact  # the same bytes


def test_a_profile_is_published_as_it_is_measured_in_memory(
    sources: dict[str, SourceSpec], tmp_path: Path
):
    calibration = {"file": "file-1", "sequences": 3, "length": 32}
    recipe = ProfileRecipe.model_validate(
        {"base": "demo", "source": "wikisql", "calibration": calibration}
    )
    text = DEMO / "text" / "calibration.txt"
    spec = AdapterSpec(
        recipe=recipe,
        base=DEMO / "base",
        sources={"wikisql": sources["wikisql"]},
        calibration=(text,),
    )
    artifact = run(spec, tmp_path / "work", tmp_path / "store", silent)
    assert artifacts.verify(artifact).kind == "profile"
    assert {path.name for path in artifact.iterdir()} == {
        "manifest.json",
        "profile.json",
        "report.json",
    }
    bags = algebra.bags_of(atoms.read(DEMO / "adapters" / "wikisql", "wikisql"))
    ids = calibration_ids(load_tokenizer(DEMO / "base"), text, recipe.text, recipe.seed)
    expected = profile.profile(evaluation.load(DEMO / "base"), bags, ids)
    found = profile.read(artifact / "profile.json")
    assert found.keys() == expected.keys()
    for key, spread in expected.items():
        assert found[key].varying == pytest.approx(spread.varying, rel=1e-6)
    report = json.loads((artifact / "report.json").read_text())
    assert report["varying"] == pytest.approx(sum(s.varying for s in expected.values()), rel=1e-6)


def test_below_the_floor_nothing_is_published(merging: Callable[..., AdapterSpec], tmp_path: Path):
    with pytest.raises(InvalidInput) as refused:
        run(merging(floor=0.99), tmp_path / "work", tmp_path / "store", silent)
    assert (refused.value.field, refused.value.code) == ("floor", "below_floor")
    assert any(task in refused.value.message for task in TASKS)
    assert not (tmp_path / "store").exists()


MODULE = "base_model.model.model.layers.3.mlp.up_proj.lora_A.weight"


def nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[MODULE][0, 0] = torch.nan


def wrong_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors[MODULE] = tensors[MODULE][:, 1:].clone()


def other_base(tensors: dict[str, torch.Tensor]) -> None:
    """All of it for a base with one layer more."""
    for name in [name for name in tensors if ".layers.3." in name]:
        tensors[name.replace(".layers.3.", ".layers.8.")] = tensors.pop(name)


@pytest.mark.parametrize(
    ("spoil", "module"),
    [(nan, MODULE), (wrong_shape, MODULE), (other_base, "layers.8.")],
)
def test_a_broken_source_is_named_with_its_module_and_nothing_is_published(
    spoil: Callable[[dict[str, torch.Tensor]], None],
    module: str,
    merging: Callable[..., AdapterSpec],
    tmp_path: Path,
):
    weights = tmp_path / "wikisql" / "adapter_model.safetensors"
    spec, tensors = merging(), load_file(weights)
    spoil(tensors)
    save_file(tensors, weights)
    with pytest.raises(InvalidInput) as refused:
        run(spec, tmp_path / "work", tmp_path / "store", silent)
    assert refused.value.field == "sources.wikisql"
    assert module in refused.value.message
    assert not (tmp_path / "store").exists()


def test_a_floor_without_rows_to_measure_is_refused(
    merging: Callable[..., AdapterSpec], tmp_path: Path
):
    for name in TASKS:
        (tmp_path / name / "eval.jsonl").unlink()
    with pytest.raises(InvalidInput, match="eval.jsonl"):
        run(merging(floor=0.5), tmp_path / "work", tmp_path / "store", silent)
    artifact = run(merging(), tmp_path / "work", tmp_path / "store", silent)
    assert [task.recovered for task in report_of(artifact).results[0].tasks] == [None, None]


def test_a_search_finds_weights_and_does_not_measure_on_what_it_saw(
    merging: Callable[..., AdapterSpec], tmp_path: Path
):
    spec = merging(method={"name": "cat"}, search={"evaluations": 4, "rows": 1}, floor=-10)
    artifact = run(spec, tmp_path / "work", tmp_path / "store", silent)
    weights = json.loads((artifact / "weights.json").read_text())
    assert set(weights) == set(TASKS)
    assert weights != dict.fromkeys(TASKS, 1.0)  # each one is too much: any step down is better
    (result,) = report_of(artifact).results
    assert {task.rows for task in result.tasks} == {ROWS - 1}
    assert set(result.ranks.values()) == {16}


@pytest.mark.parametrize(
    ("method", "ranks"),
    [
        pytest.param({"name": "svd", "params": {"rank": 4}}, {"small": 4}, id="svd"),
        pytest.param(
            {"name": "dylora", "params": {"ranks": [4, 2]}},
            {"small-r4": 4, "small-r2": 2},
            id="a ladder",
        ),
        pytest.param({"name": "darex", "params": {"drop": 0.25}}, {"small": 8}, id="darex"),
    ],
)
def test_a_compression_is_published_with_its_ranks(
    method: dict[str, Any], ranks: dict[str, int], sources: dict[str, SourceSpec], tmp_path: Path
):
    recipe = {"name": "small", "base": "demo", "source": "wikisql", "method": method}
    spec = AdapterSpec(
        recipe=CompressRecipe.model_validate(recipe),
        base=DEMO / "base",
        sources={"wikisql": sources["wikisql"]},
    )
    artifact = run(spec, tmp_path / "work", tmp_path / "store", silent)
    results = report_of(artifact).results
    assert {result.name: max(result.ranks.values()) for result in results} == ranks
    for result in results:
        assert 0.3 < result.tasks[0].recovered <= 1.05
        assert result.bytes < report_of(artifact).source_bytes["wikisql"]


@pytest.mark.parametrize("export", ["uniform", "per_layer"])
def test_adapters_of_two_slim_bases_are_merged_onto_one_of_them(
    export: Literal["uniform", "per_layer"],
    merging: Callable[..., AdapterSpec],
    sources: dict[str, SourceSpec],
    tmp_path: Path,
):
    dense = Checkpoint(DEMO / "base")
    cuts = {}
    for name, first in (("one", 0), ("other", 64)):
        layer = LayerPlan(
            kv_groups=(0, 1, 2, 3),
            ffn_channels=tuple(c for c in range(640) if not first <= c < first + 64),
        )
        plan = Plan(layers=(layer,) * 8)
        config = slim_config(dense.config, plan, export)
        slice_base(dense, plan, config, Statistics(), tmp_path / name, silent)
        shutil.copy(DEMO / "base" / "tokenizer.json", tmp_path / name)
        shutil.copy(DEMO / "base" / "tokenizer_config.json", tmp_path / name)
        (tmp_path / f"{name}.json").write_text(plan.model_dump_json())
        cuts[name] = Cut(base=tmp_path / name, plan=tmp_path / f"{name}.json")
        carried = carry.Cut(dense.geometry, plan, Geometry.from_config(config), name)
        carry.carry(
            sources[TASKS[len(cuts) - 1]].path, tmp_path / f"on-{name}", carried, "adapters"
        )
    spec = AdapterSpec(
        recipe=merging().recipe,
        base=tmp_path / "one",
        sources={
            task: SourceSpec(path=tmp_path / f"on-{name}", cut=cuts[name])
            for task, name in zip(TASKS, cuts, strict=True)
        },
        parent=DEMO / "base",
        plan=tmp_path / "one.json",
    )
    artifact = run(spec, tmp_path / "work", tmp_path / "store", silent)
    read_adapter(artifact / "adapters" / "both", Geometry.of(tmp_path / "one"))
    assert all(0.2 < task.recovered < 1 for task in report_of(artifact).results[0].tasks)


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"sources": []}, "at least 1"),
        ({"sources": [{"adapter": "a"}, {"adapter": "a"}]}, "named twice"),
        ({"floor": 1.5}, "less than or equal to 1"),
        ({"speed": 3}, "not permitted"),
    ],
)
def test_recipes_that_cannot_be_are_refused(changes: dict[str, Any], hint: str):
    recipe = {"name": "both", "base": "demo", "sources": [{"adapter": "a"}], **changes}
    with pytest.raises(ValidationError, match=hint):
        MergeRecipe.model_validate(recipe)
