"""A sweep through the real pipeline: what single jobs would find, with less work."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pruning import artifacts, pipeline
from pruning.digest import tree_digest
from pruning.errors import InvalidInput
from pruning.jobs.kinds import SWEEPS, stages_of
from pruning.reports.report import Report
from pruning.sweeps.pipeline import STAGES
from pruning.sweeps.recipe import SweepSpec
from pruning.sweeps.report import SweepReport

GRID = {"criterion": [{"name": "taylor"}, {"name": "obs"}], "target": [0.3, 0.5]}
REFIT = [{"name": "closed_form"}]


def silent(fraction: float, message: str) -> None:
    pass


def run(spec: SweepSpec, work: Path, say: Any = silent) -> SweepReport:
    work.mkdir(exist_ok=True)
    for stage in ("calibrate", "reference", "cells"):
        STAGES[stage](spec, work, say)
    return SweepReport.model_validate_json((work / "cells" / "report.json").read_bytes())


@pytest.fixture(scope="module")
def whole(spec: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A sweep of two criteria and two targets, and what it said."""
    work, said = tmp_path_factory.mktemp("sweep"), []
    asked = spec(grid=GRID, target=None, recovery=REFIT)
    report = run(asked, work, lambda fraction, message: said.append(message))
    return asked, work, report, said


@pytest.mark.parametrize("number", [0, 3])
def test_a_cell_is_measured_as_its_own_job_would_be(number: int, whole: Any, tmp_path: Path):
    spec, _, report, _ = whole
    cell = spec.cells[number]
    for stage in stages_of(cell.recipe)[:-1]:
        pipeline.STAGES[stage](cell, tmp_path, silent)
    alone = Report.model_validate_json((tmp_path / "evaluate" / "report.json").read_bytes())
    found = report.cells[number]
    assert found.number == number
    assert found.delta_nats == alone.delta_nats
    assert found.divergence == alone.divergence
    assert found.adapters == {a.name: a.slim_adapter for a in alone.adapters}
    assert found.parameters == alone.slim.size.parameters
    assert found.weight_bytes == 4 * alone.slim.size.parameters  # float32, no header
    assert found.removed_fraction == alone.removed_fraction
    assert report.dense.adapters == {a.name: a.dense_adapter for a in alone.adapters}


def test_what_cells_share_is_done_once(whole: Any):
    spec, work, report, said = whole
    assert [path.name for path in (work / "calibrate").iterdir()] == ["0"]
    assert [path.name for path in (work / "reference").iterdir()] == ["0"]
    scored = [message for message in said if message.endswith("scoring layer 1 of 4")]
    assert len(scored) == len(GRID["criterion"])
    assert Counter(message.startswith("cell ") for message in said if "perplexity" in message) == {
        False: 1,  # of the dense base
        True: len(spec.cells),
    }


def test_the_report_tells_the_front_and_what_dominates_the_rest(whole: Any):
    _, work, report, _ = whole
    assert len(report.cells) == 4
    on_front = {cell.number for cell in report.cells if cell.dominated_by is None}
    assert on_front == set(report.front)
    assert all(
        a.bytes < b.bytes and a.delta_nats > b.delta_nats
        for a, b in zip(report.best, report.best[1:], strict=False)
    )
    assert {method.name for method in report.methods} == {"taylor", "obs", "uniform", "closed_form"}
    page = (work / "cells" / "report.html").read_text()
    assert page.count("<circle") == 5
    assert page.count('class="best"') == 2 * len(report.front)
    assert "http" not in page.replace("https://arxiv.org", "")


def test_the_kv_cache_counts_in_the_bytes_if_the_recipe_says_so(spec: Any, tmp_path: Path):
    asked = spec(grid={"units": [["ffn_channel"], ["kv_group", "ffn_channel"]]}, context=100)
    report = run(asked, tmp_path)
    assert report.dense.kv_bytes_per_token == 2 * 2 * 4 * 4 * 4  # K and V, 4 layers, 4 heads of 4
    for cell in report.cells:
        assert cell.bytes == cell.weight_bytes + 100 * cell.kv_bytes_per_token
    assert report.cells[0].kv_bytes_per_token == report.dense.kv_bytes_per_token
    assert report.cells[1].kv_bytes_per_token < report.dense.kv_bytes_per_token


class Killed(Exception):
    pass


@pytest.mark.parametrize("words", ["cell 2 of 4: perplexity", "cell 3 of 4: scoring"])
def test_a_sweep_that_was_stopped_goes_on_in_the_cell_it_was_in(
    words: str, whole: Any, tmp_path: Path
):
    spec, work, report, _ = whole
    for stage in ("calibrate", "reference"):
        shutil.copytree(work / stage, tmp_path / stage)

    def stopping(fraction: float, message: str) -> None:
        if message.startswith(words):
            raise Killed

    with pytest.raises(Killed):
        STAGES["cells"](spec, tmp_path, stopping)
    said: list[str] = []
    STAGES["cells"](spec, tmp_path, lambda fraction, message: said.append(message))
    first, *_ = (int(message.split()[1]) for message in said)
    assert first == int(words.split()[1])
    assert (tmp_path / "cells" / "sweep.json").read_text() == (
        work / "cells" / "sweep.json"
    ).read_text()


def test_a_cell_that_cannot_be_made_is_told_of_and_the_others_go_on(spec: Any, tmp_path: Path):
    too_few = {"name": "distill", "params": {"tokens": 16, "checks": 1}}
    report = run(spec(grid={"recovery": [[], [too_few], [{"name": "closed_form"}]]}), tmp_path)
    assert [cell.number for cell in report.cells] == [0, 2]
    (failed,) = report.failed
    assert failed.number == 1
    assert failed.param == "grid.recovery.1.params.tokens"
    assert "32" in failed.message
    assert "could not be made" in (tmp_path / "cells" / "report.html").read_text()


def test_a_sweep_of_which_no_cell_can_be_made_fails_with_the_reason_of_the_first(
    spec: Any, tmp_path: Path
):
    too_few = [{"name": "distill", "params": {"tokens": 16}}]
    with pytest.raises(InvalidInput, match="less than one sequence") as refused:
        run(spec(recovery=too_few, grid={"target": [0.2]}, target=None), tmp_path)
    assert refused.value.field == "recovery.params.tokens"


def test_several_cuts_share_nothing_but_the_dense_base(spec: Any, tmp_path: Path):
    schedules = [{"name": "one_shot"}, {"name": "cubic", "params": {"cuts": 2}}]
    asked = spec(grid={"schedule": schedules}, criterion={"name": "magnitude"})
    report = run(asked, tmp_path)
    assert [cell.number for cell in report.cells] == [0, 1]


def test_a_decoding_step_is_timed_if_the_recipe_asks_for_it(spec: Any, tmp_path: Path):
    asked = spec(grid={"target": [0.3]}, target=None, latency={"batch": 2, "context": 8})
    report = run(asked, tmp_path)
    assert report.cells[0].latency_ms > 0
    assert report.dense.latency_ms > 0


def test_a_length_that_the_base_does_not_have_is_refused_before_anything_runs(
    spec: Any, tmp_path: Path
):
    grid = {"calibration.length": [32, 65]}
    with pytest.raises(InvalidInput, match="64") as refused:
        run(spec(grid=grid), tmp_path)
    assert refused.value.field == "grid.calibration.length.1"
    assert list((tmp_path / "calibrate").iterdir()) == []


def test_the_artifact_holds_what_was_measured_and_its_digest_no_times(whole: Any, tmp_path: Path):
    spec, work, report, _ = whole
    STAGES["publish"](spec, work, silent)
    manifest = artifacts.verify(work / "publish")
    assert manifest.kind == "sweep"
    assert manifest.recipe == spec.recipe
    assert set(manifest.files) == {"report.json", "report.html", "sweep.json"}
    assert manifest.parents.base == tree_digest(spec.base)
    lasting = json.loads((work / "publish" / "sweep.json").read_text())
    assert [cell["number"] for cell in lasting["cells"]] == list(range(4))
    assert not any("seconds" in cell for cell in lasting["cells"])


@pytest.mark.slow
@pytest.mark.parametrize("kills", [30])
def test_killed_at_random_a_sweep_measures_the_same(kills: int, spec: Any, mortal: Any):
    asked = spec(criterion={"name": "obs"}, target=None, grid={"target": [0.2, 0.4]})
    jobs = mortal(SWEEPS, asked, list(STAGES))
    work, durations = jobs.undisturbed()
    expected = artifacts.read(work / "publish").digest
    for again in jobs.killed(kills, durations):
        assert artifacts.read(again / "publish").digest == expected
