"""The gateway as a whole: models, health, one shape for errors."""

from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI


def test_models_are_the_served_bases_and_their_adapters(demo: httpx.Client):
    base, adapter = demo.get("/v1/models").json()["data"]
    assert (base["id"], base["parent"], base["ready"]) == ("demo", None, True)
    assert (adapter["id"], adapter["parent"], adapter["owned_by"]) == (
        "demo+sql",
        "demo",
        "graftwork",
    )
    assert {base["object"], adapter["object"]} == {"model"}
    assert demo.get("/v1/models/demo+sql").json() == adapter
    missing = demo.get("/v1/models/dem")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


def test_the_gateway_is_alive_before_it_is_ready(demo: httpx.Client, engines: Any):
    assert demo.get("/ready").json() == {"ready": True, "waiting": {}}
    engines.held.add("demo")
    response = demo.get("/ready")
    assert response.status_code == 503
    assert response.json() == {"ready": False, "waiting": {"engine demo": "starting"}}
    assert demo.get("/health").json() == {"status": "ok"}
    assert demo.get("/v1/models/demo").json()["ready"] is False


def test_a_lost_database_is_told_apart(demo: httpx.Client, app: FastAPI):
    app.state.catalog._engine = sa.create_engine("sqlite:////nowhere/at.all")
    assert demo.get("/ready").json() == {"ready": False, "waiting": {"database": "unreachable"}}
    response = demo.get("/v1/models")
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert response.json()["error"]["code"] == "database_unavailable"
    assert "nowhere" not in response.text
    assert response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("DELETE", "/health", 405, "method_not_allowed"),
        ("GET", "/v1/bases/none", 404, "not_found"),
        ("GET", "/v1/files/none", 404, "not_found"),
        ("POST", "/v1/bases", 400, "invalid_value"),
    ],
)
def test_every_error_has_the_same_shape(
    gateway: httpx.Client, method: str, path: str, status: int, code: str
):
    response = gateway.request(method, path)
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("invalid_request_error", code)


def test_malformed_json_is_a_client_error(gateway: httpx.Client):
    headers = {"content-type": "application/json"}
    for path in ("/v1/bases", "/v1/adapters"):
        response = gateway.post(path, content=b'{"name": ', headers=headers)
        assert response.status_code == 400
        assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_form_that_is_none_is_a_client_error(gateway: httpx.Client):
    for headers in ({}, {"content-type": "multipart/form-data; boundary=x"}):
        for path in ("/v1/files", "/v1/adapters"):
            assert gateway.post(path, content=b"--y", headers=headers).status_code == 400


def test_a_request_id_that_could_forge_a_log_line_is_replaced(gateway: httpx.Client):
    response = gateway.get("/health", headers={"x-request-id": "a b"})
    assert response.headers["x-request-id"] != "a b"


def test_the_openapi_document_describes_both_ways_to_hand_in_an_adapter(gateway: httpx.Client):
    document = gateway.get("/openapi.json").json()
    body = document["paths"]["/v1/adapters"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}
