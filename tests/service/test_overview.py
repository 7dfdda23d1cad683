"""The overview, the preview of a recipe and the list of methods."""

from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from pruning.methods import ENTRIES

RECIPE = {"base": "demo", "target": 0.2, "ffn_multiple": 4}


def test_the_overview_tells_what_engines_hold_and_do(demo: httpx.Client, upstream: Any):
    demo.post("/v1/completions", json={"model": "demo+sql", "prompt": "hello"})
    seen = demo.get("/v1/overview").json()
    (engine,) = seen["engines"]
    assert (engine["base"], engine["state"], engine["adapters"]) == ("demo", "ready", 1)
    assert engine["resident"] == 1
    assert engine["load"]["generated_tokens"] == 7.0  # of the upstream's own metrics
    assert seen["tenant"] == "local"
    assert set(seen["jobs"].values()) == {0}


def test_who_may_not_read_metrics_sees_no_load(app: FastAPI, demo: httpx.Client, upstream: Any):
    _, key = app.state.catalog.add_key("acme", "", ("infer",))
    headers = {"authorization": f"Bearer {key}"}
    seen = demo.get("/v1/overview", headers=headers).json()
    (engine,) = seen["engines"]
    assert engine["load"] is engine["resident"] is None
    assert (seen["tenant"], seen["scopes"]) == ("acme", ["infer"])


def test_an_engine_that_starts_is_shown_without_figures(demo: httpx.Client, engines: Any):
    engines.held.add("demo")
    (engine,) = demo.get("/v1/overview").json()["engines"]
    assert (engine["state"], engine["load"]) == ("starting", None)


def test_a_preview_takes_a_recipe_without_name_and_texts(demo: httpx.Client):
    told = demo.post("/v1/pruning/preview", json=RECIPE).json()
    dense, slim = told["dense"], told["slim"]
    assert slim["parameters"] < dense["parameters"]
    assert dense["weight_bytes"] > 4 * dense["parameters"]  # float32, and a header
    assert len(told["layers"]) == 2
    assert demo.get("/v1/pruning/jobs").json()["data"] == []


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"target": 0.999}, "target"),
        ({"base": "absent"}, "base"),
        ({"criterion": {"name": "guess"}}, "criterion.name"),
        ({"target": 2}, "target"),
    ],
)
def test_a_preview_refuses_what_a_job_would_refuse(
    demo: httpx.Client, changes: dict[str, Any], param: str
):
    refused = demo.post("/v1/pruning/preview", json=RECIPE | changes)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == param


def test_methods_are_listed_with_papers_and_parameters(demo: httpx.Client):
    listed = demo.get("/v1/pruning/methods").json()["data"]
    assert len(listed) == len(ENTRIES)
    (taylor,) = [one for one in listed if (one["kind"], one["name"]) == ("criterion", "taylor")]
    assert taylor["paper"]["url"] == "https://arxiv.org/abs/2305.11627"
    assert "variant" in taylor["parameters"]
    criteria = demo.get("/v1/pruning/methods", params={"kind": "criterion"}).json()["data"]
    assert {one["kind"] for one in criteria} == {"criterion"}
