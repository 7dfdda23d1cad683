"""An adapter trained over HTTP, through a real worker."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs
from typer.testing import CliRunner

from pruning import artifacts, evaluation
from pruning.adapters.quality import silent
from pruning.digest import tree_digest
from pruning.text import load_tokenizer
from service.cli import app
from service.commands.combine import plot

JOBS = "/v1/adapters/jobs"
BASE = Path(__file__).parents[2] / "deploy" / "demo" / "base"
HYPER = {"steps": 6, "batch_size": 2, "length": 24, "checks": 2}


def text(word: str) -> str:
    rows = ({"prompt": f"{i}", "completion": f" {word} {i + 1} {word}"} for i in range(16))
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def training(site, gateway) -> dict[str, Any]:
    """A training on the bundled base, which has a tokenizer."""
    site.catalog.add_base("bundled", BASE, tree_digest(BASE), serve=False)

    def upload(word: str) -> str:
        file = {"file": (f"{word}.jsonl", text(word).encode())}
        answer = gateway.post("/v1/files", data={"purpose": "fine-tune"}, files=file)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    return {
        "kind": "train",
        "name": "made",
        "base": "bundled",
        "training": {"file": upload("and")},
        "validation": {"file": upload("plus")},
        "linears": ["q_proj", "v_proj"],
        "hyperparameters": HYPER,
    }


@pytest.mark.parametrize(
    ("changes", "param", "hint"),
    [
        ({"base": "none"}, "base", "register"),
        ({"training": {"file": "file-0"}}, "training.file", "register"),
        ({"linears": ["query"]}, "linears", "q_proj"),
        ({"layers": [8]}, "layers", "0 to 7"),
        ({"init": {"name": "best"}}, "init.name", "lora_ga"),
        ({"form": {"name": "core"}}, None, "begins at zero"),
        ({"forget": {"rows": {"file": "file-0"}}}, "forget.rows.file", "register"),
    ],
)
def test_a_training_that_cannot_be_run_is_refused_at_once(gateway, training, changes, param, hint):
    answer = gateway.post(JOBS, json=training | changes)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert hint in error["message"]
    assert param is None or error["param"].endswith(param)


def test_the_command_line_uploads_rows_trains_plots_and_registers(
    site, worker, gateway, training, tmp_path
):
    for word in ("and", "plus"):
        (tmp_path / f"{word}.jsonl").write_text(text(word))
    local = training | {"training": {"file": "and.jsonl"}, "validation": {"file": "plus.jsonl"}}
    del local["kind"]
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(local))
    command = ["adapters", "train", str(tmp_path / "train.yaml"), "--wait"]
    with capture_logs():  # they would stand among the output of the command
        done = CliRunner().invoke(app, [*command, "--url", str(gateway.base_url)])
    assert done.exit_code == 0, done.output
    assert "made: rank 8, " in done.stdout
    assert "▁ validation loss, 6 steps" in done.stdout
    assert done.stdout.splitlines()[-1] == "serves: bundled+made"

    (job,) = gateway.get(JOBS).json()["data"]
    assert (job["object"], job["result"]["models"]) == ("adapter.job", ["bundled+made"])
    assert site.catalog.adapter("bundled", "made").rank == 8
    report = gateway.get(job["result"]["report"]).json()
    assert [hook["name"] for hook in report["recipe"]["hooks"]] == ["allora"]  # the default
    assert [check["step"] for check in report["curve"]] == [3, 6]
    assert report["result"] < report["base"]
    manifest = artifacts.verify(site.settings.artifacts / job["result"]["artifact"])
    assert set(manifest.parents.texts) == {"training", "validation"}
    events = gateway.get(f"{JOBS}/{job['id']}/events", params={"limit": 100}).json()["data"]
    losses = [event["message"] for event in events if "validation" in event["message"]]
    assert [words.split(":")[0] for words in losses] == [f"step {n} of 6" for n in range(1, 7)]
    checks = [event["data"] for event in events if event["type"] == "metrics"]
    assert [(check["step"], check["total_steps"]) for check in checks] == [(3, 6), (6, 6)]
    assert [check["valid_loss"] for check in checks] == [
        check["validation"] for check in report["curve"]
    ]
    assert gateway.post(JOBS, json=training).status_code == 409
    assert_checkpoints(gateway, job, report)


def assert_checkpoints(gateway, job, report):
    """They are listed newest first, page by page; the best one has a model."""
    url = f"{JOBS}/{job['id']}/checkpoints"
    page = gateway.get(url, params={"limit": 1}).json()
    rest = gateway.get(url, params={"limit": 1, "after": page["last_id"]}).json()
    assert (page["has_more"], rest["has_more"]) == (True, False)
    found = page["data"] + rest["data"]
    assert [one["step_number"] for one in found] == [6, 3]
    for one, check in zip(reversed(found), report["curve"], strict=True):
        assert one["object"] == "adapter.job.checkpoint"
        assert one["fine_tuning_job_id"] == job["id"]
        assert one["metrics"]["train_loss"] == check["training"]
        model = "bundled+made" if check["step"] == report["best_step"] else None
        assert one["fine_tuned_model_checkpoint"] == model
    assert gateway.get(url, params={"after": "ftckpt-0"}).json()["error"]["param"] == "after"
    command = ["jobs", "checkpoints", job["id"], "--url", str(gateway.base_url)]
    with capture_logs():
        shown = CliRunner().invoke(app, command)
    assert shown.stdout.splitlines()[0].split() == [
        "STEP",
        "TRAINING",
        "VALIDATION",
        "SERVED",
        "AS",
    ]
    assert "bundled+made" in shown.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_task_is_unlearnt_over_http_and_the_others_are_not(site, worker, gateway, finished):
    """A tripled perplexity of what is forgotten; nothing else is more than 3 % worse."""
    site.catalog.add_base("bundled", BASE, tree_digest(BASE), serve=False)
    tasks = BASE.parent / "adapters"
    kept = ("clinc150", "e2e_nlg", "shakespeare", "wikisql")

    def upload(part: str, *names: str) -> dict[str, str]:
        content = b"".join((tasks / name / f"{part}.jsonl").read_bytes() for name in names)
        form = {"data": {"purpose": "fine-tune"}, "files": {"file": (f"{part}.jsonl", content)}}
        return {"file": gateway.post("/v1/files", **form).json()["id"]}

    recipe = {
        "kind": "train",
        "name": "without-math",
        "base": "bundled",
        "training": upload("calibration", *kept),
        "validation": upload("eval", *kept),
        "forget": {"rows": upload("calibration", "gsm8k")},
        "linears": ["gate_proj", "up_proj", "down_proj"],
        "hyperparameters": {"steps": 60, "length": 64, "checks": 6, "patience": 6},
    }
    job = finished(gateway.post(JOBS, json=recipe), seconds=1500.0)
    assert job["status"] == "succeeded", job["error"]
    report = gateway.get(job["result"]["report"]).json()
    assert math.exp(report["forget_result"] - report["forget_base"]) >= 3
    made = site.settings.artifacts / job["result"]["artifact"] / "adapters" / "without-math"
    tokenizer, base = load_tokenizer(BASE), evaluation.load(BASE)
    rows = {
        name: evaluation.rows(tokenizer, tasks / name / "eval.jsonl", 64, name) for name in kept
    }
    before = {name: evaluation.completion_loss(base, rows[name], silent) for name in kept}
    adapted = evaluation.with_adapter(base, made)
    for name in kept:
        after = evaluation.completion_loss(adapted, rows[name], silent)
        assert math.exp(after - before[name]) <= 1.03, name


def test_losses_are_plotted_from_the_lowest_to_the_highest():
    assert plot([3.0, 2.0, 1.0]) == "█▅▁"
    assert plot([1.0, 1.0]) == "▁▁"
