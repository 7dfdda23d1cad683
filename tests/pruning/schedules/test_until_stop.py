"""Rounds are as deep as the PQ index says, and end when it falls after it has risen."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pruning.digest import tree_digest
from pruning.methods.schedules import UntilStopParams
from pruning.pipeline import STAGES
from pruning.recipe import PruneSpec
from pruning.reports.page import render
from pruning.reports.report import Report
from pruning.schedules.until_stop import Round, depth, has_collapsed, is_over, pq_index


@pytest.fixture
def spec(asked: Callable[..., PruneSpec]) -> Callable[..., PruneSpec]:
    schedule = {"name": "until_stop", "params": {"rounds": 3}}
    return lambda **changes: asked(**{"target": 0.8, "schedule": schedule} | changes)


@pytest.mark.parametrize(
    ("indices", "collapsed"),
    [
        ([0.2], False),
        ([0.2, 0.1], False),  # the first fall: redundancy leaves
        ([0.2, 0.1, 0.15], False),
        ([0.2, 0.1, 0.15, 0.14], True),
        ([0.2, 0.3, 0.3], True),
        ([0.2, 0.3, 0.4], False),
    ],
)
def test_the_rounds_stop_when_the_index_falls_after_it_has_risen(
    indices: list[float], collapsed: bool
):
    assert has_collapsed(indices) is collapsed
    assert is_over([Round(0.1, index) for index in indices], 0.9, 10) is collapsed


def test_the_rounds_end_at_the_target_and_at_their_number():
    assert is_over([Round(0, 0.2), Round(0.5, 0.1)], 0.5, 10)
    assert is_over([Round(0, 0.2), Round(0.3, 0.1)], 0.5, 1)


def test_a_round_removes_what_the_bound_does_not_keep():
    # p = ½, q = 1: m/d = (1 + η)⁻² (1 − I)
    assert depth(0.16, UntilStopParams()) == pytest.approx(0.16)
    assert depth(0.2, UntilStopParams(eta=1)) == pytest.approx(1 - 0.8 / 4)
    assert depth(0.16, UntilStopParams(gamma=2)) == pytest.approx(0.32)
    assert depth(0.9, UntilStopParams(gamma=2)) == 0.9


def test_the_index_is_that_of_all_linears_together(dense_base: Callable[[str], Path]):
    tensors = load_file(dense_base("llama") / "model.safetensors")
    linears = [t.flatten() for name, t in tensors.items() if name.endswith("_proj.weight")]
    w = torch.cat(linears).double().abs()
    expected = 1 - len(w) ** (1 - 2) * w.sqrt().sum() ** 2 / w.sum()
    assert pq_index(dense_base("llama"), 0.5) == pytest.approx(float(expected), rel=1e-9)


def test_a_job_tells_its_rounds_and_leaves_what_the_best_one_left(
    spec: Any, run: Any, tmp_path: Path
):
    one, two = (run(spec(), tmp_path / name) for name in ("one", "two"))
    assert tree_digest(one / "recover") == tree_digest(two / "recover")
    report = Report.model_validate_json((one / "evaluate" / "report.json").read_bytes())
    told = json.loads((one / "schedule" / "rounds.json").read_text())
    assert [r.target for r in report.rounds] == [r["target"] for r in told["rounds"]]
    first, second = report.rounds[:2]
    assert first.target == 0
    assert second.target == pytest.approx(first.index)  # p = ½: I is what leaves
    assert second.target < told["target"] < 0.8
    assert report.removed_fraction == pytest.approx(told["target"], abs=0.03)
    assert "PQ index" in render(report)


def test_the_target_is_the_most_that_leaves(spec: Any, run: Any, tmp_path: Path):
    work = run(spec(target=0.1), tmp_path / "work")
    assert json.loads((work / "schedule" / "rounds.json").read_text())["target"] == 0.1
    assert not (work / "schedule.state").exists()


def test_a_round_that_was_finished_is_not_made_again_after_a_kill(
    spec: Any, run: Any, tmp_path: Path
):
    expected, work, fractions = tmp_path / "undisturbed", tmp_path / "killed", list[float]()
    work.mkdir()
    run(spec(), expected, "schedule")

    def deadly(fraction: float, message: str) -> None:
        fractions.append(fraction)
        if fraction > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        STAGES["schedule"](spec(), work, deadly)
    fractions.clear()
    STAGES["schedule"](spec(), work, lambda fraction, message: fractions.append(fraction))
    assert min(fractions) >= 1 / 3
    assert tree_digest(work / "schedule") == tree_digest(expected / "schedule")
