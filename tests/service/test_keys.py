"""API keys: shown once, checked before anything else, and never needed on loopback without any."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.testclient import TestClient
from typer.testing import CliRunner

from service import console, keys
from service.app import create_app
from service.authentication import OPEN, is_loopback
from service.cli import app as cli
from service.dependencies import Requirement
from service.settings import Settings


@pytest.fixture
def key(app: FastAPI) -> Callable[..., str]:
    """Make a key for a tenant, in the database."""

    def make(tenant: str, *scopes: Any, expires: int | None = None) -> str:
        return app.state.catalog.add_key(tenant, "", scopes, expires)[1]

    return make


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def admin(key: Callable[..., str], gateway: httpx.Client) -> httpx.Client:
    """A client with all rights."""
    gateway.headers.update(bearer(key("operators", "admin")))
    return gateway


def requirements(route: APIRoute) -> list[tuple[str, ...]]:
    calls = [dependency.call for dependency in route.dependant.dependencies]
    return [call.scopes for call in calls if isinstance(call, Requirement)]


def test_every_route_declares_the_scopes_that_it_takes(app: FastAPI):
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    assert len(routes) > 30
    undeclared = {route.path for route in routes if not requirements(route)}
    assert undeclared == {"/health", "/ready", "/", "/docs", "/console/{name:path}"}
    assert undeclared - {"/console/{name:path}"} <= (OPEN | console.OPEN).keys()
    assert all(path in ("/", "/docs") or path.startswith("/console/") for path in console.OPEN)


@pytest.mark.parametrize(
    ("path", "scopes"),
    [
        ("/v1/completions", {"infer"}),
        ("/v1/chat/completions", {"infer"}),
        ("/v1/adapters", {"adapters"}),
        ("/v1/compositions", {"adapters"}),
        ("/v1/files", {"jobs"}),
        ("/v1/pruning/jobs", {"jobs"}),
        ("/v1/adapters/jobs", {"jobs"}),
        ("/v1/keys", {"admin"}),
        ("/metrics", {"admin"}),
    ],
)
def test_a_resource_takes_its_scope(app: FastAPI, path: str, scopes: set[str]):
    routes = [r for r in app.routes if isinstance(r, APIRoute) and r.path == path]
    assert routes
    for route in routes:
        assert set().union(*requirements(route)) == scopes


def test_without_any_key_a_loopback_gateway_answers_anybody(demo: httpx.Client):
    assert demo.get("/v1/models").status_code == 200
    assert demo.get("/v1/models", headers=bearer("none")).status_code == 200


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer none", "Basic eDp5", "Bearer gw-000000000000-" + 43 * "x"],
)
def test_once_there_is_a_key_nobody_enters_without_one(admin: httpx.Client, header: str):
    response = admin.get("/v1/models", headers={"authorization": header})
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"] == {
        "message": "No valid API key; send one as `Authorization: Bearer gw-…`.",
        "type": "authentication_error",
        "param": None,
        "code": "invalid_api_key",
    }
    assert admin.get("/health", headers={"authorization": header}).status_code == 200


def test_metrics_may_be_open_where_all_else_is_not(settings: Settings, engines: Any):
    app = create_app(settings.model_copy(update={"metrics_open": True}), engines)
    app.state.catalog.add_key("acme", "", ("infer",))
    with TestClient(app) as client:
        assert client.get("/metrics").status_code == 200
        assert client.get("/v1/models").status_code == 401


def test_a_refused_upload_is_not_waited_for(admin: httpx.Client):
    connection = HTTPConnection(admin.base_url.host, admin.base_url.port or 80, timeout=10)
    connection.putrequest("POST", "/v1/files")
    connection.putheader("content-length", str(1 << 30))
    connection.putheader("content-type", "multipart/form-data; boundary=x")
    connection.endheaders(b"--x")
    assert connection.getresponse().status == 401
    connection.close()


def test_a_wrong_secret_after_a_right_id_does_not_enter(
    admin: httpx.Client, key: Callable[..., str]
):
    text = key("acme", "infer")
    wrong = text[:-1] + ("A" if text[-1] != "A" else "B")
    assert admin.get("/v1/models", headers=bearer(text)).status_code == 200
    assert admin.get("/v1/models", headers=bearer(wrong)).status_code == 401


def test_a_missing_scope_is_forbidden_and_named(admin: httpx.Client, key: Callable[..., str]):
    response = admin.get("/v1/adapters", headers=bearer(key("acme", "infer")))
    assert response.status_code == 403
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("permission_error", "insufficient_permissions")
    assert "adapters" in error["message"]


def test_a_path_on_the_server_is_for_admins(
    admin: httpx.Client, key: Callable[..., str], adapter_directory: Path
):
    body = {"name": "sql", "base": "demo", "path": str(adapter_directory)}
    headers = bearer(key("acme", "adapters", "infer", "jobs"))
    assert admin.post("/v1/adapters", json=body, headers=headers).status_code == 403
    assert admin.post("/v1/adapters", json=body).status_code == 404  # there is no such base


def test_a_key_is_created_used_listed_and_revoked(admin: httpx.Client):
    made = admin.post("/v1/keys", json={"tenant": "acme", "scopes": ["infer"]}).json()
    assert made["key"].startswith(made["prefix"] + "-")
    assert admin.get("/v1/models", headers=bearer(made["key"])).status_code == 200
    (listed,) = admin.get("/v1/keys", params={"tenant": "acme"}).json()["data"]
    assert listed["last_used"] is not None
    assert "key" not in listed
    assert made["key"] not in admin.get("/v1/keys").text
    assert admin.delete(f"/v1/keys/{made['id']}").json()["revoked"] <= time.time()
    assert admin.get("/v1/models", headers=bearer(made["key"])).status_code == 401


def test_a_rotated_key_has_the_same_rights_and_ends_the_old_one(admin: httpx.Client):
    old = admin.post("/v1/keys", json={"tenant": "acme", "name": "ci"}).json()
    new = admin.post(f"/v1/keys/{old['id']}/rotate", json={}).json()
    same = ("tenant", "name", "scopes", "expires")
    assert [new[field] for field in same] == [old[field] for field in same]
    assert admin.get("/v1/models", headers=bearer(old["key"])).status_code == 401
    assert admin.get("/v1/models", headers=bearer(new["key"])).status_code == 200
    assert admin.post(f"/v1/keys/{old['id']}/rotate", json={}).status_code == 409


def test_a_rotated_key_may_go_on_for_a_while(admin: httpx.Client):
    old = admin.post("/v1/keys", json={"tenant": "acme"}).json()
    admin.post(f"/v1/keys/{old['id']}/rotate", json={"grace_seconds": 600})
    assert admin.get("/v1/models", headers=bearer(old["key"])).status_code == 200


def test_an_expired_key_does_not_enter(admin: httpx.Client, key: Callable[..., str]):
    past = int(time.time()) - 1
    headers = bearer(key("acme", "infer", expires=past))
    assert admin.get("/v1/models", headers=headers).status_code == 401


def test_a_gateway_whose_last_key_was_revoked_stays_closed(admin: httpx.Client):
    (own,) = admin.get("/v1/keys").json()["data"]
    assert admin.delete(f"/v1/keys/{own['id']}").status_code == 200
    assert admin.get("/v1/models").status_code == 401
    assert admin.get("/v1/models", headers={"authorization": ""}).status_code == 401


TRAFFIC = """
import structlog
from starlette.testclient import TestClient
from service import logs
from service.app import create_app
from service.settings import Settings

logs.configure()
with TestClient(create_app(Settings())) as client:
    _, key = client.app.state.catalog.add_key("acme", "", ("infer",))
    for text in (key, key + "x"):
        for path in ("/v1/models", f"/v1/models/{key}"):
            client.get(path, headers={"authorization": f"Bearer {text}"})
    structlog.get_logger("test").info("said", nested={"list": [f"take {key}"]}, text=key)
    try:
        raise ValueError(key)
    except ValueError:
        structlog.get_logger("test").exception("failed")
    record = client.app.state.catalog.find_key(key[3:15])
    print(key, repr(record), sep="\\n")
"""


def test_no_key_is_stored_logged_or_in_a_repr(tmp_path: Path):
    home = tmp_path / "home"
    run = subprocess.run(
        [sys.executable, "-P", "-c", TRAFFIC],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "GRAFTWORK_HOME": str(home)},
    )
    key, shown = run.stdout.splitlines()
    secret = key[16:]
    assert run.stderr.count('"event": "request"') == 4
    assert '"event": "failed"' in run.stderr
    assert run.stderr.count(key[:16]) >= 4  # the paths of two requests, the text, the exception
    for place in (run.stderr, shown):
        assert secret not in place
    assert keys.digest_of(key) not in shown
    for file in home.glob("graftwork.db*"):
        assert secret.encode() not in file.read_bytes()


def test_the_command_line_makes_keys_without_a_server(tmp_path: Path):
    runner = CliRunner(env={"GRAFTWORK_HOME": str(tmp_path)})

    def run(*words: str) -> str:
        result = runner.invoke(cli, ["keys", *words])
        assert result.exit_code == 0, result.output
        return result.stdout.strip()

    first = run("create", "acme", "--scope", "admin", "--name", "ci")
    second = run("rotate", first[:15])
    assert run("revoke", second[:15]) == f"revoked {second[:15]}"
    listed = json.loads(run("list", "--json"))
    assert {key["prefix"] for key in listed} == {first[:15], second[:15]}
    assert all(key["revoked"] and key["scopes"] == ["admin"] for key in listed)
    refused = runner.invoke(cli, ["keys", "create", "a b", "--scope", "root"])
    assert refused.exit_code == 1
    assert "tenant" in refused.output
    assert "scopes" in refused.output


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.com", False),
        ("", False),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(host: str, loopback: bool):
    assert is_loopback(host) is loopback
