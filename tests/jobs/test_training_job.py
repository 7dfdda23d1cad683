"""An adapter trained over HTTP, through a real worker."""

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
    assert [check["step"] for check in report["curve"]] == [3, 6]
    assert report["result"] < report["base"]
    manifest = artifacts.verify(site.settings.artifacts / job["result"]["artifact"])
    assert set(manifest.parents.texts) == {"training", "validation"}
    events = gateway.get(f"{JOBS}/{job['id']}/events", params={"limit": 100}).json()["data"]
    losses = [event["message"] for event in events if "validation" in event["message"]]
    assert [words.split(":")[0] for words in losses] == [f"step {n} of 6" for n in range(1, 7)]
    assert gateway.post(JOBS, json=training).status_code == 409


def test_losses_are_plotted_from_the_lowest_to_the_highest():
    assert plot([3.0, 2.0, 1.0]) == "█▅▁"
    assert plot([1.0, 1.0]) == "▁▁"
