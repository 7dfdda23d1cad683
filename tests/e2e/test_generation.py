"""Examples in, a job, and the answers of an adapter that nobody has trained."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.engine

DEMO = Path(__file__).parents[2] / "deploy" / "demo"
TASKS = ("clinc150", "wikisql")
LEARNT = 40  # rows of each task that train; those after them ask and measure


@pytest.fixture(scope="module")
def client(gateway: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway, timeout=120) as client:
        yield client


def rows(task: str) -> list[str]:
    return (DEMO / "adapters" / task / "eval.jsonl").read_text().strip().split("\n")


def checked(response: httpx.Response) -> Any:
    assert response.is_success, response.text
    return response.json()


def ended(client: httpx.Client, recipe: dict[str, Any]) -> Any:
    path = f"/v1/adapters/jobs/{checked(client.post('/v1/adapters/jobs', json=recipe))['id']}"
    deadline = time.monotonic() + 400
    while (job := checked(client.get(path)))["finished_at"] is None:
        assert time.monotonic() < deadline, job
        time.sleep(0.5)
    return job


@pytest.fixture(scope="module")
def generator(client: httpx.Client) -> Iterator[str]:
    """A generator of two tasks, trained in seconds."""
    tasks = {}
    for task in TASKS:
        text = "".join(f"{line}\n" for line in rows(task)[:LEARNT])
        file = {"file": (f"{task}.jsonl", text.encode())}
        uploaded = client.post("/v1/files", data={"purpose": "training"}, files=file)
        tasks[task] = {"file": checked(uploaded)["id"]}
    recipe = {
        "kind": "train_generator",
        "name": "maker",
        "base": "demo",
        "tasks": tasks,
        "families": {
            "rank": 2,
            "linears": ["q_proj", "v_proj"],
            "steps": 30,
            "batch": 2,
            "length": 64,
            "learning_rate": 0.01,
            "checkpoints": 2,
            "demonstrations": 32,
            "held_out": 4,
        },
        "network": {"steps": 300, "width": 32, "batch": 32},
    }
    job = ended(client, recipe)
    assert job["status"] == "succeeded", job["error"]
    yield "maker"
    checked(client.delete("/v1/generators/demo+maker"))


def log_likelihood(client: httpx.Client, model: str, row: dict[str, str]) -> float:
    """Of a completion after its prompt."""
    asked = {"model": model, "prompt": row["prompt"] + row["completion"], "max_tokens": 1}
    answer = checked(client.post("/v1/completions", json=asked | {"echo": True, "logprobs": 0}))
    logprobs = answer["choices"][0]["logprobs"]
    tokens = zip(logprobs["text_offset"], logprobs["token_logprobs"], strict=True)
    return float(sum(p for at, p in tokens if at >= len(row["prompt"]) and p is not None))


def test_examples_become_an_adapter_that_answers_better_than_the_base(
    client: httpx.Client, generator: str
):
    own = [json.loads(line) for line in rows("clinc150")[LEARNT:]]
    recipe = {
        "kind": "generate",
        "name": "made",
        "base": "demo",
        "generator": generator,
        "examples": own[:6],
        "samples": 2,
    }
    job = ended(client, recipe)
    assert job["status"] == "succeeded", job["error"]
    assert job["result"]["models"] == ["demo+made"]
    report = checked(client.get(job["result"]["report"]))
    assert report["generated"]["nearest_task"] == "clinc150"
    likelihoods = {
        model: sum(log_likelihood(client, model, row) for row in own[6:])
        for model in ("demo", "demo+made")
    }
    assert likelihoods["demo+made"] > likelihoods["demo"] + 1
    spelled = f"demo+made:0.5+{TASKS[1]}:0.5"  # it is an adapter as any other
    asked = {"model": spelled, "prompt": own[0]["prompt"], "max_tokens": 4}
    assert checked(client.post("/v1/completions", json=asked))["choices"][0]["text"]
    checked(client.delete("/v1/adapters/demo+made"))


def test_examples_of_another_task_are_refused_with_the_distance(
    client: httpx.Client, generator: str
):
    strange = [{"prompt": "", "completion": "{" * n + "}" * n} for n in range(3, 9)]
    recipe = {
        "kind": "generate",
        "name": "strange",
        "base": "demo",
        "generator": generator,
        "examples": strange,
    }
    job = ended(client, recipe)
    assert job["status"] == "failed"
    assert (job["error"]["code"], job["error"]["param"]) == ("too_far", "examples")
    assert "at a distance of" in job["error"]["message"]
