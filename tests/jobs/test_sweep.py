"""Sweeps over HTTP, at the command line and through a real worker."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from structlog.testing import capture_logs
from typer.testing import CliRunner

from pruning import artifacts
from pruning.digest import tree_digest
from service.cli import app
from service.verification import verify

DEMO = Path(__file__).parents[2] / "deploy" / "demo"
SWEEPS = "/v1/pruning/sweeps"


@pytest.fixture
def sweep(site, recipe, tmp_path, write_base):
    """A recipe with a grid of four cells, on a tiny base that can read."""
    path = write_base(tmp_path / "reads", vocab_size=4096)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / "base" / name, path / name)
    site.catalog.add_base("reads", path, tree_digest(path))
    grid = {"target": [0.2, 0.3], "criterion": [{"name": "magnitude"}, {"name": "wanda"}]}
    shared = {name: value for name, value in recipe.items() if name != "target"}
    return {**shared, "name": "tries", "base": "reads", "grid": grid}


@pytest.fixture
def graftwork(gateway):
    """Run `graftwork` with these words."""

    def run(*words):
        with capture_logs():  # they would stand among the output of the command
            return CliRunner().invoke(app, [*map(str, words), "--url", str(gateway.base_url)])

    return run


@pytest.mark.slow
def test_a_sweep_killed_in_a_cell_resumes_there_and_its_best_cell_is_made(
    site, worker, gateway, sweep, eventually, graftwork, collect, tmp_path
):
    (tmp_path / "words.txt").write_text("one two three " * 20)
    text = sweep["calibration"] | {"file": "words.txt"}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep | {"calibration": text}))
    id = graftwork("sweep", "run", tmp_path / "sweep.yaml").stdout.split()[0]
    (first,) = eventually(
        lambda: list(site.settings.jobs.glob(f"{id}/cells.state/*/0.json")), "a cell was made", 400
    )
    made = json.loads(first.read_text())["report"]["stages"]
    assert "running" in graftwork("sweep", "show", id).stderr
    site.kill_worker()
    site.start_worker()
    path = f"{SWEEPS}/{id}"
    eventually(lambda: gateway.get(path).json()["finished_at"], "the end of the sweep", 400)
    job = gateway.get(path).json()
    assert (job["object"], job["status"], job["error"]) == ("sweep.job", "succeeded", None)
    assert collect() == []  # nothing is served of it, and it stays
    assert list(verify(site.settings, site.catalog)) == []
    assert job["result"]["models"] == []
    assert [one["id"] for one in gateway.get(SWEEPS).json()["data"]] == [id]
    report = gateway.get(job["result"]["report"]).json()
    assert [cell["number"] for cell in report["cells"]] == [0, 1, 2, 3]
    assert report["cells"][0]["seconds"] == pytest.approx(sum(s["seconds"] for s in made), abs=1e-3)
    assert "<svg" in gateway.get(job["result"]["report"], params={"format": "html"}).text
    assert artifacts.verify(site.settings.artifacts / job["result"]["artifact"]).kind == "sweep"
    assert [base.name for base in site.catalog.bases()] == ["demo", "reads"]
    assert site.work_directories() == []

    shown = json.loads(graftwork("sweep", "show", id, "--json").stdout)
    assert [cell["number"] for cell in shown] == report["front"]
    table = graftwork("sweep", "show", id, "--all").stdout
    assert "DOMINATED BY" in table
    assert all(word in table for word in ("magnitude", "wanda", f"{shown[0]['bytes']:,}"))

    smallest = min(cell["bytes"] for cell in report["cells"])
    limit = ("--from-sweep", id, "--target-bytes")
    refused = graftwork("prune", *limit, smallest - 1)
    assert refused.exit_code == 1
    assert "no cell fits; the nearest" in refused.stderr
    chosen = graftwork("prune", *limit, smallest, "--name", "small").stdout.split()[0]
    job = gateway.get(f"/v1/pruning/jobs/{chosen}").json()
    assert job["recipe"]["name"] == "small"
    best = min(
        (c for c in report["cells"] if c["bytes"] == smallest), key=lambda c: c["delta_nats"]
    )
    assert job["recipe"]["target"] == best["changes"]["target"]
    assert job["recipe"]["criterion"]["name"] == best["changes"]["criterion"]["name"]


def test_a_sweep_is_queued_looked_up_and_cancelled_as_other_jobs_are(gateway, sweep):
    headers = {"Idempotency-Key": "monday"}
    job = gateway.post(SWEEPS, json=sweep, headers=headers).json()
    assert job["id"].startswith("sweepjob-")
    assert (job["status"], job["recipe"]["grid"]) == ("queued", sweep["grid"])
    assert gateway.post(SWEEPS, json=sweep, headers=headers).json() == job
    assert gateway.post(SWEEPS, json=sweep).status_code == 409  # of the same name
    assert gateway.get(f"{SWEEPS}/{job['id']}").json() == job
    assert gateway.get(f"/v1/pruning/jobs/{job['id']}").status_code == 404
    early = gateway.post(f"{SWEEPS}/{job['id']}/jobs", json={"cell": 0})
    assert early.status_code == 404
    assert "queued" in early.json()["error"]["message"]
    assert gateway.post(f"{SWEEPS}/{job['id']}/cancel").json()["status"] == "cancelled"


@pytest.mark.parametrize(
    ("changes", "param", "hint"),
    [
        ({"grid": {}}, "grid", "at least 1"),
        ({"grid": {"target": [0.2, 0.99]}}, "grid.target.1", "cell 1: target 0.99"),
        ({"grid": {"target": [0.2], "criterion": [{"name": "x"}]}}, "grid.criterion.0.name", "obs"),
        ({"grid": {"target": [0.2], "floors": [{"kv_groups": 9}]}}, "grid.floors.0.kv_groups", ""),
        (
            {"target": 0.2, "grid": {"calibration.file": ["gone"]}},
            "grid.calibration.file.0",
            "gone",
        ),
        ({"base": "nobody"}, "base", "register"),
        ({"speed": 1}, "speed", "not permitted"),
        ({"latency": {"batch": 0}}, "latency.batch", "greater"),
    ],
    ids=str,
)
def test_a_sweep_that_cannot_be_run_is_refused_at_once_with_the_field_at_fault(
    gateway, sweep, changes, param, hint
):
    answer = gateway.post(SWEEPS, json=sweep | changes)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert hint in answer.json()["error"]["message"]
    assert gateway.get(SWEEPS).json()["data"] == []


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["prune"], "give a recipe, or --from-sweep"),
        (["prune", "recipe.yaml", "--max-loss", "1"], "give a recipe, or --from-sweep"),
        (["prune", "--from-sweep", "sweepjob-0", "--name", "x"], "--target-bytes"),
        (["prune", "--from-sweep", "sweepjob-0", "--max-loss", "1"], "does not exist"),
        (
            ["prune", "--from-sweep", "sweepjob-0", "--max-loss", "1", "--target-bytes", "9"],
            "give one of",
        ),
        (["sweep", "show", "sweepjob-0"], "does not exist"),
        (["sweep", "run", "none.yaml"], "cannot be read"),
    ],
    ids=str,
)
def test_a_command_that_cannot_be_run_says_so_in_one_line(graftwork, words, hint):
    refused = graftwork(*words)
    assert refused.exit_code == 1
    assert refused.stderr.startswith("error: ")
    assert refused.stderr.count("\n") == 1
    assert hint in refused.stderr
