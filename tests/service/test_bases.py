"""Bases over HTTP: checked, served on demand, and not deleted under what depends on them."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest


def test_a_base_is_registered_with_its_geometry_and_gets_an_engine(
    demo: httpx.Client, base_directory: Path, engines: Any
):
    base = demo.get("/v1/bases/demo").json()
    assert base["path"] == str(base_directory)
    assert (base["family"], base["layers"], base["parent"]) == ("llama", 2, None)
    # 32 x 16 embedding, two layers of 768 + 1152 weights and 32 of norms, and the last norm
    assert base["parameters"] == 512 + 2 * (768 + 1152 + 32) + 16
    assert (base["serve"], base["ready"]) == (True, True)
    assert demo.get("/v1/bases").json()["data"] == [base]
    assert set(engines.running) == {"demo"}


def test_serving_can_be_stopped_and_started(demo: httpx.Client, engines: Any):
    for serve in (False, True):
        assert demo.patch("/v1/bases/demo", json={"serve": serve}).json()["serve"] is serve
        deadline = time.monotonic() + 60
        while ("demo" in engines.running) is not serve:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_base_can_be_registered_without_serving_it(gateway: httpx.Client, base_directory: Path):
    body = {"name": "demo", "path": str(base_directory), "serve": False}
    assert gateway.post("/v1/bases", json=body).json()["serve"] is False
    assert gateway.get("/ready").status_code == 200
    assert gateway.get("/v1/models").json()["data"] == []


def test_a_base_with_adapters_is_not_deleted(demo: httpx.Client):
    response = demo.delete("/v1/bases/demo")
    assert response.status_code == 409
    assert "demo+sql" in response.json()["error"]["message"]


def test_a_deleted_base_leaves_the_catalog_but_not_the_disk(
    demo: httpx.Client, base_directory: Path
):
    demo.delete("/v1/adapters/demo+sql")
    assert demo.delete("/v1/bases/demo").json()["deleted"] is True
    assert demo.get("/v1/bases/demo").status_code == 404
    assert (base_directory / "model.safetensors").is_file()


def test_a_name_is_given_once(demo: httpx.Client, tmp_path: Path, write_base: Callable[..., Path]):
    body = {"name": "demo", "path": str(write_base(tmp_path / "other"))}
    assert demo.post("/v1/bases", json=body).status_code == 409


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"name": "a/b"}, "name"),
        ({"name": "a+b"}, "name"),
        ({"name": ""}, "name"),
        ({"path": "relative"}, "path"),
        ({"path": "/nowhere"}, "path"),
        ({"path": None}, "path"),
        ({"path": "/x\0y"}, "path"),
        ({"serve": "sometimes"}, "serve"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_bad_field_is_named(
    gateway: httpx.Client, base_directory: Path, changes: dict[str, Any], param: str
):
    body = {"name": "demo", "path": str(base_directory)} | changes
    response = gateway.post("/v1/bases", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert gateway.get("/v1/bases").json()["data"] == []


def test_pickled_weights_are_refused(gateway: httpx.Client, base_directory: Path):
    (base_directory / "pytorch_model.bin").write_bytes(b"pickle")
    response = gateway.post("/v1/bases", json={"name": "demo", "path": str(base_directory)})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "pickle_refused"
