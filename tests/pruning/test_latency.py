"""Blocks are timed on the machine at hand, and a plan follows from the times alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pruning import latency
from pruning.errors import InvalidInput
from pruning.evaluation import load
from pruning.pipeline import STAGES
from pruning.plan import Plan
from pruning.recipe import PruneSpec, Recipe
from pruning.reports.page import render
from pruning.reports.report import Report
from pruning.weights.checkpoint import Checkpoint

TABLE = {"attention": {1: 1.0, 4: 4.0}, "mlp": {5: 0.5, 48: 4.8}, "rest": 2.0}
# of four layers: 2 + 4 · (4 + 4.8) = 37.2 ms


def quiet(fraction: float, message: str) -> None:
    return None


@pytest.fixture
def spec(dense_base: Callable[[str], Path], tmp_path: Path) -> Callable[..., PruneSpec]:
    (tmp_path / "text").write_text("".join(f"Row {i} has the number {i * i}.\n" for i in range(60)))

    def make(base: str = "llama", **size: Any) -> PruneSpec:
        text = {"file": "f", "sequences": 4, "length": 32}
        asked = {"name": "slim", "base": "dense", "ffn_multiple": 1, "export": "per_layer"}
        asked |= {"size": {"context": 16, **size}, "calibration": text, "evaluation": text}
        return PruneSpec(
            recipe=Recipe.model_validate(asked),
            base=dense_base(base),
            adapters={},
            calibration=tmp_path / "text",
            evaluation=tmp_path / "text",
        )

    return make


def test_of_several_steps_the_shortest_counts_and_models_take_turns(
    spec: Any, monkeypatch: pytest.MonkeyPatch
):
    durations = iter([9, 5, 4, 9, 7, 6, 9, 3, 8, 9, 6, 7])  # seconds, the first of three warms up
    times = iter(t for duration in durations for t in (0, duration))
    monkeypatch.setattr(latency, "clock", lambda: next(times))
    monkeypatch.setattr(latency, "ROUNDS", 2)
    monkeypatch.setattr(latency, "STEPS", 2)
    asked = spec(latency_ms=1)
    models = dict.fromkeys(("one", "other"), load(asked.base))
    assert latency.shortest(models, asked.recipe.size, quiet) == {"one": 3000, "other": 6000}


@pytest.mark.parametrize("base", ["llama", "qwen3"])
def test_every_width_is_timed(base: str, spec: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(latency, "ROUNDS", 1)
    monkeypatch.setattr(latency, "STEPS", 3)
    asked = spec(base, latency_ms=1, batch=2)
    found = latency.table(Checkpoint(asked.base), asked.recipe, quiet)
    assert list(found.attention) == [1, 2, 3, 4]
    assert min(found.mlp) == 5  # a tenth of 48
    assert max(found.mlp) == 48
    assert min(*found.attention.values(), *found.mlp.values()) > 0
    assert "threads" in found.machine


def test_a_job_reaches_a_latency_by_its_table_and_tells_what_was_measured(
    spec: Any, tmp_path: Path
):
    asked = spec(latency_ms=20, table=TABLE)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for stage in STAGES:
            STAGES[stage](asked, tmp_path / name, quiet)
    one, two = ((tmp_path / name / "plan" / "plan.json").read_bytes() for name in ("one", "two"))
    assert one == two
    report = Report.model_validate_json(
        (tmp_path / "one" / "evaluate" / "report.json").read_bytes()
    )
    assert report.latency is not None
    assert report.latency.asked == 20
    assert report.latency.predicted == pytest.approx(20, abs=0.1)
    assert report.latency.slim > 0
    assert report.latency.dense > 0
    assert "decoding step" in render(report)


def test_measured_times_are_kept_and_the_plan_follows_from_them(
    spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(latency, "ROUNDS", 1)
    measured, given = tmp_path / "measured", tmp_path / "given"
    for work in (measured, given):
        work.mkdir()
    table = latency.LatencyTable.model_validate(TABLE)
    monkeypatch.setattr(latency, "table", lambda *_: table)
    STAGES["calibrate"](spec(latency_ms=20), measured, quiet)
    STAGES["calibrate"](spec(latency_ms=20, table=TABLE), given, quiet)
    plans = []
    for work in (measured, given):
        STAGES["plan"](spec(latency_ms=20), work, quiet)
        plans.append(Plan.model_validate_json((work / "plan" / "plan.json").read_bytes()))
    assert plans[0] == plans[1]


def test_a_latency_that_the_measured_times_forbid_is_refused_by_the_plan(spec: Any, tmp_path: Path):
    work = tmp_path / "work"
    work.mkdir()
    asked = spec(latency_ms=3, table=TABLE)
    with pytest.raises(InvalidInput, match="smallest reachable"):
        STAGES["calibrate"](asked, work, quiet)
    (work / "calibrate" / "latency.json").write_text(asked.recipe.size.table.model_dump_json())
    with pytest.raises(InvalidInput, match="smallest reachable"):
        STAGES["plan"](spec(latency_ms=3), work, quiet)
