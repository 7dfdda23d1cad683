"""A generator trained and asked over HTTP, through a real worker that may be killed."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs
from typer.testing import CliRunner

from pruning import artifacts
from pruning.digest import tree_digest
from service.cli import app

JOBS = "/v1/adapters/jobs"
BASE = Path(__file__).parents[2] / "deploy" / "demo" / "base"
TASKS = {"counting": "{0} and {1} and", "shouting": "LOOK {0} AND {1} OH"}
FAMILIES = {
    "rank": 2,
    "linears": ["q_proj", "v_proj"],
    "steps": 6,
    "batch": 2,
    "length": 24,
    "checkpoints": 2,
    "demonstrations": 12,
    "held_out": 4,
}


def rows(task: str, start: int, count: int) -> list[dict[str, str]]:
    said = (TASKS[task].format(i, i + 1) for i in range(start, start + count))
    return [{"prompt": "", "completion": f"{text} so"} for text in said]


@pytest.fixture
def bundled(site, gateway):
    """The site with the bundled base, which has a tokenizer, and the rows of two tasks."""
    site.catalog.add_base("bundled", BASE, tree_digest(BASE), serve=False)
    return site


@pytest.fixture
def training(bundled, gateway) -> dict[str, Any]:
    def upload(task: str) -> str:
        text = "".join(json.dumps(row) + "\n" for row in rows(task, 0, 24))
        file = {"file": (f"{task}.jsonl", text.encode())}
        answer = gateway.post("/v1/files", data={"purpose": "training"}, files=file)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    return {
        "kind": "train_generator",
        "name": "maker",
        "base": "bundled",
        "tasks": {task: {"file": upload(task)} for task in TASKS},
        "families": FAMILIES,
        "network": {"steps": 40, "width": 16},
    }


@pytest.fixture
def asking() -> dict[str, Any]:
    return {
        "kind": "generate",
        "name": "made",
        "base": "bundled",
        "generator": "maker",
        "examples": rows("shouting", 8, 8),
        "samples": 2,
    }


def test_a_generator_is_trained_listed_asked_and_forgotten(
    bundled, worker, gateway, training, asking, finished
):
    job = finished(gateway.post(JOBS, json=training))
    assert job["error"] is None
    assert (job["object"], job["status"], job["model"]) == ("adapter.job", "succeeded", "bundled")
    assert job["result"]["models"] == []
    (listed,) = gateway.get("/v1/generators").json()["data"]
    assert listed == gateway.get("/v1/generators/bundled+maker").json()
    assert listed["digest"] == job["result"]["artifact"]
    report = gateway.get(job["result"]["report"]).json()
    assert [task["task"] for task in report["tasks"]] == sorted(TASKS)
    assert gateway.post(JOBS, json=training).status_code == 409
    in_use = gateway.delete("/v1/bases/bundled")
    assert in_use.status_code == 409
    assert "generator bundled+maker" in in_use.json()["error"]["message"]

    made = finished(gateway.post(JOBS, json=asking))
    assert made["error"] is None
    assert made["result"]["models"] == ["bundled+made"]
    adapter = bundled.catalog.adapter("bundled", "made")
    assert adapter.rank == 2
    manifest = artifacts.verify(bundled.settings.artifacts / made["result"]["artifact"])
    assert manifest.generated.generator == listed["digest"]
    assert manifest.generated.nearest_task == "shouting"
    by_digest = asking | {"name": "again", "generator": listed["digest"]}
    assert finished(gateway.post(JOBS, json=by_digest))["status"] == "succeeded"
    assert gateway.delete("/v1/generators/bundled+maker").json()["deleted"]
    assert gateway.get("/v1/generators/bundled+maker").status_code == 404
    assert bundled.catalog.adapter("bundled", "made") == adapter


def test_killed_in_training_a_job_resumes_with_what_it_had(
    bundled, gateway, training, finished, eventually
):
    worker = bundled.start_worker()
    longer = training | {"families": FAMILIES | {"steps": 40}}
    answer = gateway.post(JOBS, json=longer)

    def in_training():
        works = bundled.work_directories()
        return any(list(work.glob("families.state/*/courses/*/*")) for work in works)

    eventually(in_training, "a saved course", 120.0)
    bundled.kill_worker()
    assert worker.returncode == -9
    bundled.start_worker()
    job = finished(answer)
    assert job["error"] is None
    events = gateway.get(f"{JOBS}/{job['id']}/events", params={"limit": 100}).json()["data"]
    begun = [e["data"]["stage"] for e in events if e["message"].endswith("started")]
    assert begun == ["families", "families", "train", "measure", "publish"]
    assert artifacts.verify(bundled.settings.artifacts / job["result"]["artifact"])


@pytest.mark.parametrize(
    ("changes", "param", "hint"),
    [
        ({"base": "none"}, "base", "register"),
        ({"tasks": {"a": {"file": "file-0"}, "b": {"file": "file-0"}}}, "tasks.a.file", "register"),
        ({"families": {"linears": ["query"]}}, "families.linears", "q_proj"),
        ({"tasks": {}}, "tasks", "at least 2"),
    ],
)
def test_a_training_that_cannot_be_run_is_refused_at_once(gateway, training, changes, param, hint):
    answer = gateway.post(JOBS, json=training | changes)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert hint in error["message"]
    assert error["param"].endswith(param)


@pytest.mark.parametrize(
    ("changes", "param", "hint"),
    [
        ({"generator": "none"}, "generator", "train one first"),
        ({"examples": None}, None, "either examples or a description"),
        ({"examples": {"file": "file-0"}}, "examples.file", "register"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_at_once(
    bundled, gateway, asking, changes, param, hint
):
    answer = gateway.post(JOBS, json=asking | changes)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert hint in error["message"]
    assert param is None or error["param"].endswith(param)


def test_the_command_line_uploads_rows_trains_generates_and_lists(
    bundled, worker, gateway, training, asking, tmp_path
):
    def graftwork(*words: object) -> str:
        command = ["adapters", *map(str, words), "--url", str(gateway.base_url)]
        with capture_logs():  # they would stand among the output of the command
            done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        return done.stdout

    def written(name: str, recipe: dict[str, Any]) -> Path:
        text = yaml.safe_dump({k: v for k, v in recipe.items() if k != "kind"})
        (tmp_path / name).write_text(text)
        return tmp_path / name

    for task in TASKS:
        text = "".join(json.dumps(row) + "\n" for row in rows(task, 0, 24))
        (tmp_path / f"{task}.jsonl").write_text(text)
    local = training | {"tasks": {task: {"file": f"{task}.jsonl"} for task in TASKS}}
    trained = graftwork("train-generator", written("train.yaml", local), "--wait")
    assert "maker: 2 tasks, " in trained
    assert "  of the gain of counting: " in trained
    assert "maker" in graftwork("generators", "--base", "bundled")
    made = graftwork("generate", written("generate.yaml", asking), "--wait")
    assert "made: nearest task shouting, distance" in made
    assert made.splitlines()[-1] == "serves: bundled+made"
