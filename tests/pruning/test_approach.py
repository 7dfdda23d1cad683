"""Schedules of several cuts on a tiny base, through the real stages."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pruning.approach import approach, share_of, step_of, targets_of
from pruning.digest import tree_digest
from pruning.errors import InvalidInput
from pruning.geometry import Geometry
from pruning.pipeline import STAGES
from pruning.plan import Plan
from pruning.recipe import Method, PruneSpec, Recipe
from pruning.reports.report import Report

TEXT = "".join(f"Sentence {i} is about the number {i * i}.\n" for i in range(60))
QUICK = {"tokens": 1536, "batch": 4, "learning_rate": 0.003, "checks": 2}
CUBIC = {"name": "cubic", "params": {"cuts": 3}}
OUTPUTS = ("plan", "slice", "recover")


def quiet(fraction: float, message: str) -> None:
    return None


@pytest.fixture
def spec(dense_base: Callable[[str], Path], tmp_path: Path) -> Callable[..., PruneSpec]:
    """A spec that distils, with changes to its recipe."""
    (tmp_path / "text").write_text(TEXT)

    def make(**changes: Any) -> PruneSpec:
        asked = {
            "name": "slim",
            "base": "dense",
            "target": 0.5,
            "ffn_multiple": 1,
            "criterion": {"name": "taylor"},
            "schedule": CUBIC,
            "recovery": [{"name": "distill", "params": QUICK}],
            "calibration": {"file": "file-1", "sequences": 6, "length": 32},
            "evaluation": {"file": "file-2", "sequences": 4, "length": 32},
        }
        recipe = Recipe.model_validate(asked | changes)
        text = tmp_path / "text"
        return PruneSpec(
            recipe=recipe,
            base=dense_base("llama"),
            adapters={},
            calibration=text,
            evaluation=text,
        )

    return make


def run(spec: PruneSpec, work: Path, *stages: str) -> Path:
    work.mkdir(exist_ok=True)
    for stage in stages or STAGES:
        STAGES[stage](spec, work, quiet)
    return work


def plan_of(work: Path) -> Plan:
    return Plan.model_validate_json((work / "plan" / "plan.json").read_bytes())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"allocator": {"name": "global"}, "criterion": {"name": "fluctuation"}},
        {"schedule": {"name": "interleaved", "params": {"step": 0.25}}, "bias_compensation": True},
        {"blocks": {"attention": 1, "mlp": 1}, "recovery": []},
    ],
    ids=["cubic", "global", "interleaved", "blocks"],
)
def test_the_last_cut_meets_the_target_and_two_runs_write_the_same_bytes(
    changes: dict[str, Any], spec: Any, tmp_path: Path
):
    one, two = (run(spec(**changes), tmp_path / name) for name in ("one", "two"))
    report = Report.model_validate_json((one / "evaluate" / "report.json").read_bytes())
    assert report.removed_fraction == pytest.approx(0.5, abs=0.03)  # the biases gained are counted
    assert "schedule" in {method.kind for method in report.methods}
    for output in OUTPUTS:
        assert tree_digest(one / output) == tree_digest(two / output)


def test_a_size_is_neared_in_several_cuts(spec: Any, tmp_path: Path):
    geometry = Geometry.of(spec().base)
    left = geometry.parameters - round(0.4 * geometry.body_parameters)
    asked = spec(target=None, size={"parameters": left}, export="per_layer")
    halfway = step_of(asked, targets_of(asked)[-1] / 2).recipe.size
    assert halfway.parameters == pytest.approx((geometry.parameters + left) / 2, abs=1)
    report_path = run(asked, tmp_path / "work") / "evaluate" / "report.json"
    report = Report.model_validate_json(report_path.read_bytes())
    assert report.slim.size.parameters == pytest.approx(left, abs=3 * 32)  # one channel of 32


def test_one_cut_is_the_pipeline_without_a_schedule(spec: Any, tmp_path: Path):
    once = spec(schedule={"name": "cubic", "params": {"cuts": 1}})
    unscheduled = spec(schedule={"name": "one_shot"})
    works = [run(asked, tmp_path / asked.recipe.schedule.name) for asked in (once, unscheduled)]
    assert list((works[0] / "schedule").iterdir()) == []
    for output in OUTPUTS:
        assert tree_digest(works[0] / output) == tree_digest(works[1] / output)


def test_units_that_left_stay_away_while_those_that_stay_are_trained_on(spec: Any, tmp_path: Path):
    plans: list[Plan] = []

    def planned(spec: PruneSpec, work: Path, progress: Any) -> None:
        STAGES["plan"](spec, work, progress)
        plans.append(plan_of(work))

    work = tmp_path / "work"
    (work / "schedule").mkdir(parents=True)
    asked = spec()
    approach(asked, work, {**STAGES, "plan": planned}, quiet)
    run(asked, work, "calibrate", "plan")
    widths = [len(plan.layers[0].ffn_channels) for plan in (*plans, plan_of(work))]
    assert len(widths) == 3
    assert widths == sorted(widths, reverse=True)
    for earlier, later in zip(plans, [*plans[1:], plan_of(work)], strict=True):
        for before, after in zip(earlier.layers, later.layers, strict=True):
            assert set(after.ffn_channels) <= set(before.ffn_channels)
    dense = load_file(asked.base / "model.safetensors")
    lifted = load_file(work / "schedule" / "base" / "model.safetensors")
    down = "model.layers.0.mlp.down_proj.weight"
    kept = list(plans[-1].layers[0].ffn_channels)
    assert not torch.equal(lifted[down][:, kept], dense[down][:, kept])


def test_the_tokens_of_a_recipe_are_shared_by_its_cuts(spec: Any):
    step = step_of(spec(), 0.25).recipe
    assert step.recovery[0].params == QUICK | {"tokens": 512}
    assert (step.target, step.schedule.name, step.export) == (0.25, "one_shot", "per_layer")
    assert share_of(Method(name="lora"), 4).params == {"tokens": 50_000}


def test_a_step_that_was_finished_is_not_made_again_after_a_kill(spec: Any, tmp_path: Path):
    asked = spec(schedule={"name": "cubic", "params": {"cuts": 4}})
    expected = run(asked, tmp_path / "undisturbed", "schedule")
    work, cuts = tmp_path / "killed", list[float]()
    (work / "schedule").mkdir(parents=True)

    def deadly(spec: PruneSpec, work: Path, progress: Any) -> None:
        cuts.append(spec.recipe.target)
        if len(cuts) == 3:
            raise KeyboardInterrupt
        STAGES["slice"](spec, work, progress)

    with pytest.raises(KeyboardInterrupt):
        approach(asked, work, {**STAGES, "slice": deadly}, quiet)
    approach(asked, work, {**STAGES, "slice": deadly}, quiet)
    assert cuts == [*cuts[:3], cuts[2]]
    assert len(set(cuts)) == 3
    assert tree_digest(work / "schedule") == tree_digest(expected / "schedule")


@pytest.mark.parametrize(
    ("change", "field"), [({"target": 0.97}, "target"), ({"fleet": {}}, "schedule")]
)
def test_a_recipe_that_cannot_be_run_is_refused_before_the_first_cut(
    change: dict[str, Any], field: str, spec: Any, tmp_path: Path
):
    with pytest.raises(InvalidInput) as refused:
        run(spec(**change), tmp_path / "work", "schedule")
    assert refused.value.field == field
    assert not (tmp_path / "work" / "schedule.state").exists()
