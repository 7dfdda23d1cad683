"""Metrics: the gateway's own and every engine's, in one exposition that tools accept."""

import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.metrics import Metrics, engine_families


def samples(text: str, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    return {
        tuple(sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def test_requests_are_counted_by_route_status_and_model(demo: httpx.Client, upstream: Any):
    for prompt in ("hello", "hello", "refuse"):
        demo.post("/v1/completions", json={"model": "demo+sql", "prompt": prompt})
    demo.post("/v1/completions", json={"model": "invented"})
    demo.get("/no/such/path")
    counted = samples(demo.get("/metrics").text, "graftwork_requests_total")

    def count(route: str, status: str, model: str) -> float:
        return counted[("model", model), ("route", route), ("status", status)]

    assert count("/v1/completions", "200", "demo+sql") == 2
    assert count("/v1/completions", "400", "demo+sql") == 1
    assert count("/v1/completions", "404", "") == 1
    assert count("unmatched", "404", "") == 1


def test_the_first_event_of_a_stream_is_timed(demo: httpx.Client, upstream: Any):
    body = {"model": "demo", "prompt": "hello", "stream": True}
    demo.post("/v1/completions", json=body)
    timed = samples(demo.get("/metrics").text, "graftwork_time_to_first_token_seconds_count")
    assert timed == {(("model", "demo"),): 1.0}


def test_engines_are_labelled_with_their_base_and_their_families_appear_once(
    demo: httpx.Client, upstream: Any
):
    text = demo.get("/metrics").text
    tokens = samples(text, "vllm:generation_tokens_total")
    assert tokens == {(("engine", "demo"), ("model_name", "demo")): 7.0}
    assert "vllm:lora_requests_info" not in text
    assert "python_info" not in text
    ready = samples(text, "graftwork_engine_ready")
    assert ready == {(("engine", "demo"), ("state", "ready")): 1.0}


def test_jobs_are_counted_by_status(demo: httpx.Client):
    text = "text " * 100
    file = demo.post("/v1/files", data={"purpose": "calibration"}, files={"file": ("t", text)})
    sample = {"file": file.json()["id"], "sequences": 1, "length": 8}
    recipe = {"name": "slim", "base": "demo", "target": 0.2, "ffn_multiple": 1}
    texts = {"calibration": sample, "evaluation": sample}
    job = demo.post("/v1/pruning/jobs", json=recipe | texts)
    assert job.status_code == 200, job.text
    jobs = samples(demo.get("/metrics").text, "graftwork_jobs")
    assert jobs[(("status", "queued"),)] == 1
    assert sum(jobs.values()) == 1
    demo.post(f"/v1/pruning/jobs/{job.json()['id']}/cancel")
    jobs = samples(demo.get("/metrics").text, "graftwork_jobs")
    assert (jobs[(("status", "queued"),)], jobs[(("status", "cancelled"),)]) == (0, 1)


def test_an_engine_that_does_not_answer_is_left_out(
    demo: httpx.Client, serve_upstream: Callable[[str], AbstractContextManager[Any]]
):
    assert "vllm:" not in demo.get("/metrics").text
    with serve_upstream("demo"):
        assert "vllm:" in demo.get("/metrics").text


def test_two_engines_share_one_family():
    text = '# HELP vllm:x X.\n# TYPE vllm:x gauge\nvllm:x{engine="0"} 1\n'
    (family,) = engine_families({"one": text, "two": text + 'vllm:x{engine="1"} 2\n'})
    assert [sample.labels["engine"] for sample in family.samples] == ["one", "two", "two/1"]


def test_the_label_model_cannot_grow_without_bound():
    metrics = Metrics()
    for number in range(1000):
        metrics.observe_request("/v1/completions", 200, f"model-{number}", 0.1)
    models = {
        sample.labels["model"]
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "graftwork_requests_total"
    }
    assert len(models) == 201
    assert "other" in models


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) absent")
def test_promtool_accepts_the_exposition(demo: httpx.Client, upstream: Any):
    demo.post("/v1/completions", json={"model": "demo", "prompt": "hello", "stream": True})
    text = demo.get("/metrics").text
    check = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True
    )
    # exit code 3: it parses, but a style is complained of; vLLM's names have a colon, and keep it
    complaints = [line for line in check.stderr.splitlines() if "':'" not in line]
    assert (check.returncode, complaints) == (3, [])
