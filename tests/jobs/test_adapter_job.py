"""Merging and compressing over HTTP and through a real worker: the job object of every job."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from structlog.testing import capture_logs
from typer.testing import CliRunner

from pruning import artifacts
from pruning.adapters import atoms, carry
from pruning.adapters.peft_format import read_adapter
from pruning.digest import tree_digest
from pruning.geometry import Geometry
from pruning.plan import LayerPlan, Plan
from service.cli import app

DEMO = Path(__file__).parents[2] / "deploy" / "demo"
JOBS = "/v1/adapters/jobs"


@pytest.fixture
def two(site, tmp_path, write_adapter):
    """The site with a second adapter, `other`, of rank 3."""
    path = write_adapter(tmp_path / "other", seed=1, r=3)
    site.catalog.add_adapter("demo", "other", path, tree_digest(path), rank=3)
    return site


@pytest.fixture
def merging():
    return {
        "kind": "merge",
        "name": "both",
        "base": "demo",
        "sources": [{"adapter": "task"}, {"adapter": "other", "weight": 0.5}],
        "method": {"name": "cat"},
    }


@pytest.fixture
def graftwork(gateway, tmp_path):
    """Run `graftwork adapters COMMAND`, a recipe written to a file first."""

    def run(command, recipe, *options):
        if isinstance(recipe, dict):
            path = tmp_path / "recipe.yaml"
            path.write_text(yaml.safe_dump({k: v for k, v in recipe.items() if k != "kind"}))
            recipe = path
        words = ["adapters", command, str(recipe), *options, "--url", str(gateway.base_url)]
        with capture_logs():  # they would stand among the output of the command
            return CliRunner().invoke(app, words)

    return run


def test_a_merge_ends_with_a_registered_adapter(two, worker, gateway, merging, finished):
    job = finished(gateway.post(JOBS, json=merging))
    assert job["error"] is None
    assert (job["object"], job["status"], job["model"]) == ("adapter.job", "succeeded", "demo")
    assert job["result"]["models"] == ["demo+both"]
    made = two.catalog.adapter("demo", "both")
    assert made.rank == 5
    directory = two.settings.artifacts / job["result"]["artifact"]
    assert made.path == directory / "adapters" / "both"
    assert set(artifacts.verify(directory).parents.adapters) == {"task", "other"}
    report = gateway.get(job["result"]["report"]).json()
    assert [task["weight"] for task in report["results"][0]["tasks"]] == [0.5, 1.0]
    assert gateway.get(job["result"]["report"], params={"format": "html"}).status_code == 404
    assert [one["id"] for one in gateway.get(JOBS).json()["data"]] == [job["id"]]
    assert gateway.get("/v1/pruning/jobs").json()["data"] == []
    assert gateway.get(f"/v1/pruning/jobs/{job['id']}").status_code == 404
    events = gateway.get(f"{JOBS}/{job['id']}/events").json()["data"]
    finished = [e["data"]["stage"] for e in events if e["message"].endswith("finished")]
    assert finished == ["combine", "measure", "publish"]
    assert two.work_directories() == []
    again = gateway.post(JOBS, json=merging)
    assert again.status_code == 409
    assert "demo+both" in again.json()["error"]["message"]


def test_a_source_that_broke_after_it_was_registered_fails_the_job(
    two, worker, gateway, merging, finished
):
    path = two.catalog.adapter("demo", "other").path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 2}))
    job = finished(gateway.post(JOBS, json=merging))
    assert job["status"] == "failed"
    assert job["error"]["param"] == "sources.other"
    assert "lora_A" in job["error"]["message"]
    assert two.artifacts() == []
    assert [adapter.name for adapter in two.catalog.adapters("demo")] == ["other", "task"]


def test_a_ladder_registers_every_rung(two, worker, gateway, finished):
    recipe = {
        "kind": "compress",
        "name": "small",
        "base": "demo",
        "source": "other",
        "method": {"name": "dylora", "params": {"ranks": [2, 1]}},
    }
    job = finished(gateway.post(JOBS, json=recipe))
    assert job["error"] is None
    assert job["result"]["models"] == ["demo+small-r2", "demo+small-r1"]
    assert [two.catalog.adapter("demo", f"small-r{rank}").rank for rank in (2, 1)] == [2, 1]


@pytest.mark.parametrize(
    ("changes", "param", "hint"),
    [
        ({"base": "none"}, "base", "register"),
        ({"sources": [{"adapter": "none"}]}, "sources", "demo+none"),
        ({"method": {"name": "glue"}}, "merge.name", "lego"),
        ({"method": {"name": "lego", "params": {"k": 0}}}, "merge.params.k", "greater"),
        ({"floor": 2}, "floor", "less"),
        ({"kind": "stir"}, None, "compress"),
    ],
)
def test_a_recipe_that_cannot_be_run_is_refused_at_once(
    two, gateway, merging, changes, param, hint
):
    answer = gateway.post(JOBS, json=merging | changes)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert hint in error["message"]
    assert param is None or error["param"].endswith(param)


def test_adapters_of_bases_without_a_common_parent_are_refused(
    two, gateway, merging, tmp_path, write_base
):
    path = write_base(tmp_path / "stranger")
    two.catalog.add_base("stranger", path, tree_digest(path))
    sources = [{"adapter": "task"}, {"adapter": "task", "base": "stranger"}]
    error = gateway.post(JOBS, json=merging | {"sources": sources}).json()["error"]
    assert error["code"] == "adapter_mismatch"
    assert "parent" in error["message"]


def test_the_command_line_merges_and_says_what_it_made(two, worker, graftwork, merging):
    done = graftwork("merge", merging, "--wait")
    assert done.exit_code == 0, done.output
    *_, made, other, task, served = done.stdout.splitlines()
    assert made.startswith("both: rank 5, ")
    assert (other, task) == (
        "  of the gain of other: not measured",
        "  of the gain of task: not measured",
    )
    assert served == "serves: demo+both"
    assert two.catalog.adapter("demo", "both").rank == 5


def test_the_command_line_compresses_and_says_how_to_follow(two, worker, graftwork):
    recipe = {"name": "small", "base": "demo", "source": "other"}
    recipe |= {"method": {"name": "svd", "params": {"rank": 1}}}
    begun = graftwork("compress", recipe)
    assert begun.exit_code == 0, begun.output
    id, hint = begun.stdout.splitlines()
    assert hint == f"follow it with: graftwork jobs events {id} --follow"
    done = graftwork("compress", recipe | {"name": "smaller"}, "--wait")
    assert done.exit_code == 0, done.output
    assert "smaller: rank 1, " in done.stdout
    assert "serves: demo+smaller" in done.stdout


def test_the_command_line_names_the_source_and_module_of_a_job_that_failed(
    two, worker, graftwork, merging
):
    path = two.catalog.adapter("demo", "other").path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 2}))
    failed = graftwork("merge", merging, "--wait")
    assert failed.exit_code == 1
    assert "sources.other" in failed.stderr
    assert "lora_A" in failed.stderr
    assert two.artifacts() == []


@pytest.fixture
def slim(site, tmp_path, write_base):
    """A slim base of `demo` with half of the channels, and `task` carried to it."""
    path = write_base(tmp_path / "cut" / "model", intermediate_size=12)
    plan = Plan(layers=(LayerPlan(kv_groups=(0, 1), ffn_channels=tuple(range(0, 24, 2))),) * 2)
    (tmp_path / "cut" / "plan.json").write_text(plan.model_dump_json())
    site.catalog.add_base("demo-slim", path, tree_digest(path), parent="demo")
    demo = site.catalog.base("demo")
    cut = carry.Cut(demo.geometry, plan, Geometry.of(path), "demo-slim")
    carry.carry(site.catalog.adapter("demo", "task").path, tmp_path / "carried", cut, "task")
    digest = tree_digest(tmp_path / "carried")
    site.catalog.add_adapter("demo-slim", "task", tmp_path / "carried", digest, rank=2)
    return site


def test_the_command_line_lifts_an_adapter_to_the_dense_base(slim, worker, graftwork):
    done = graftwork("lift", "demo-slim+task", "--name", "lifted", "--wait")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == "serves: demo+lifted"
    found = atoms.read(slim.catalog.adapter("demo", "lifted").path, "lifted").atoms
    own = atoms.read(slim.catalog.adapter("demo-slim", "task").path, "task").atoms
    for key, linear in own.items():
        scale = linear.alpha / len(linear.a)
        if key[1] in ("gate_proj", "up_proj"):
            assert torch.equal(found[key].b[::2], scale * linear.b)
            assert not found[key].b[1::2].any()
        elif key[1] == "down_proj":
            assert torch.equal(found[key].a[:, ::2], linear.a)
            assert not found[key].a[:, 1::2].any()
        else:
            assert torch.equal(found[key].a, linear.a)


def test_only_adapters_of_slim_bases_are_lifted(two, graftwork):
    refused = graftwork("lift", "demo+task")
    assert refused.exit_code == 1
    assert "demo" in refused.stderr
    assert "no slim base" in refused.stderr


@pytest.fixture
def bundled(site):
    """The site with the bundled base and one of its adapters, twice."""
    site.catalog.add_base("bundled", DEMO / "base", tree_digest(DEMO / "base"))
    path = DEMO / "adapters" / "wikisql"
    digest = read_adapter(path, Geometry.of(DEMO / "base")).digest
    for name in ("sql", "again"):
        site.catalog.add_adapter("bundled", name, path, digest, rank=8)
    return site


def test_a_profile_is_stored_with_the_content_of_the_adapter(bundled, worker, gateway, finished):
    (text,) = gateway.get("/v1/files").json()["data"]
    calibration = {"file": text["id"], "sequences": 2, "length": 16}
    recipe = {"kind": "profile", "base": "bundled", "source": "sql", "calibration": calibration}
    assert gateway.get("/v1/adapters/bundled+sql").json()["profile"] is None
    assert gateway.get("/v1/adapters/bundled+sql/profile").status_code == 404
    job = finished(gateway.post(JOBS, json=recipe))
    assert job["error"] is None
    assert job["result"]["models"] == []
    for id in ("bundled+sql", "bundled+again"):  # the same content
        found = gateway.get(f"/v1/adapters/{id}").json()["profile"]
        assert found["correlation"][0] == pytest.approx(1)
        assert found["varying"] > 0
        whole = gateway.get(f"/v1/adapters/{id}/profile").json()
        assert whole["high"] == found["high"]
        assert sum(linear["varying"] for linear in whole["linears"].values()) == pytest.approx(
            found["varying"]
        )
    assert finished(gateway.post(JOBS, json={**recipe, "seed": 1}))["error"] is None  # replaces it


def test_a_profile_needs_a_text_of_the_adapter_or_of_the_recipe(gateway):
    answer = gateway.post(JOBS, json={"kind": "profile", "base": "demo", "source": "task"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "calibration.adapter"
    assert "calibration.jsonl" in answer.json()["error"]["message"]
