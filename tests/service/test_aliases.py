"""Aliases: what a name stands for can be promoted and rolled back, and requests follow at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.tenants import SCOPES


@pytest.fixture
def client(
    demo: httpx.Client, upstream: Any, write_base: Callable[..., Path], tmp_path: Path
) -> httpx.Client:
    """A gateway with a second base, `other`, beside `demo`."""
    base = {"name": "other", "path": str(write_base(tmp_path / "other")), "serve": False}
    assert demo.post("/v1/bases", json=base).status_code == 201
    return demo


def promote(client: httpx.Client, base: str, name: str = "prod") -> httpx.Response:
    return client.put(f"/v1/aliases/{name}", json={"base": base})


def test_requests_for_an_alias_are_answered_by_what_it_names(client: httpx.Client):
    assert promote(client, "demo").json()["before"] == []
    answer = client.post("/v1/completions", json={"model": "prod", "prompt": "hello"})
    assert answer.json()["echo"]["model"] == "demo"
    adapted = client.post("/v1/completions", json={"model": "prod+sql", "prompt": "hello"})
    assert adapted.json()["echo"]["model"].startswith("demo+sql@")
    composed = client.post("/v1/completions", json={"model": "prod+sql:0.5", "prompt": "hello"})
    assert composed.status_code == 200, composed.text
    assert client.get("/v1/models/prod+sql").json()["parent"] == "demo"


def test_a_promotion_moves_it_and_rollbacks_go_back_step_by_step(client: httpx.Client):
    for base in ("demo", "other", "demo"):
        promote(client, base)
    assert client.get("/v1/aliases/prod").json()["before"] == ["demo", "other"]
    for expected in ("other", "demo"):
        assert client.post("/v1/aliases/prod/rollback").json()["base"] == expected
    refused = client.post("/v1/aliases/prod/rollback")
    assert refused.status_code == 409
    assert "nothing else before" in refused.json()["error"]["message"]


def test_the_same_promotion_twice_is_one(client: httpx.Client):
    promote(client, "demo")
    assert promote(client, "demo").json()["before"] == []


def test_an_alias_to_a_base_that_is_not_served_is_listed_nowhere_and_answers_404(
    client: httpx.Client,
):
    promote(client, "demo")
    listed = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    assert listed["prod"]["parent"] == "demo"
    promote(client, "other")
    assert "prod" not in {model["id"] for model in client.get("/v1/models").json()["data"]}
    assert client.post("/v1/completions", json={"model": "prod"}).status_code == 404


def test_names_of_bases_and_unknown_bases_are_refused(client: httpx.Client):
    assert promote(client, "demo", name="other").status_code == 409
    assert promote(client, "absent").status_code == 404
    assert promote(client, "demo", name="a+b").status_code == 400
    assert client.get("/v1/aliases/prod").status_code == 404
    assert client.post("/v1/aliases/prod/rollback").status_code == 404


def test_no_base_can_take_the_name_of_an_alias(
    client: httpx.Client, write_base: Callable[..., Path], tmp_path: Path
):
    promote(client, "demo")
    base = {"name": "prod", "path": str(write_base(tmp_path / "prod")), "serve": False}
    refused = client.post("/v1/bases", json=base)
    assert refused.status_code == 409
    assert "alias 'prod' exists" in refused.json()["error"]["message"]
    assert client.delete("/v1/aliases/prod").status_code == 200
    assert client.post("/v1/bases", json=base).status_code == 201


def test_a_base_that_an_alias_names_or_named_stays(client: httpx.Client):
    promote(client, "other")
    refused = client.delete("/v1/bases/other")
    assert refused.status_code == 409
    assert "alias prod" in refused.json()["error"]["message"]
    assert client.delete("/v1/aliases/prod").json() == {
        "id": "prod",
        "object": "alias",
        "deleted": True,
    }
    assert client.delete("/v1/bases/other").status_code == 200


def test_a_job_cannot_take_the_name_of_an_alias(client: httpx.Client):
    promote(client, "demo")
    files = {"file": ("words.txt", b"one two three " * 50)}
    uploaded = client.post("/v1/files", data={"purpose": "calibration"}, files=files).json()
    text = {"file": uploaded["id"], "sequences": 2, "length": 8}
    recipe = {"name": "prod", "base": "demo", "target": 0.2, "ffn_multiple": 4}
    refused = client.post(
        "/v1/pruning/jobs", json={**recipe, "calibration": text, "evaluation": text}
    )
    assert refused.status_code == 409
    assert refused.json()["error"]["param"] == "name"


def test_aliases_belong_to_tenants(app: FastAPI, client: httpx.Client):
    def of(tenant: str, *scopes: Any) -> httpx.Client:
        _, key = app.state.catalog.add_key(tenant, "", scopes)
        headers = {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=client.base_url, headers=headers, timeout=20)

    acme, umbra, reader = of("acme", *SCOPES[:3]), of("umbra", *SCOPES[:3]), of("acme", "infer")
    assert promote(acme, "demo").status_code == 200
    assert umbra.get("/v1/aliases").json()["data"] == []
    assert promote(umbra, "demo").status_code == 200
    assert reader.get("/v1/aliases/prod").status_code == 200
    assert promote(reader, "demo").status_code == 403
