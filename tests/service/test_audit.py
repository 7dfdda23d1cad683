"""The audit log: every change is there with who asked for it, and stays."""

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from typer.testing import CliRunner

from service import database, schema
from service.cli import app as cli
from service.errors import Conflict
from service.settings import Settings


def test_a_change_is_told_with_who_asked(
    client_of: Callable[..., httpx.Client], adapter_directory: Path
):
    acme, admin = client_of("acme"), client_of("operators", "admin")
    files = [("files", (p.name, p.read_bytes())) for p in sorted(adapter_directory.iterdir())]
    form = {"name": "own", "base": "demo"}
    added = acme.post("/v1/adapters", data=form, files=files, headers={"x-request-id": "one"})
    assert added.status_code == 201
    mix = {"name": "mix", "base": "demo", "adapters": {"own": 0.5}}
    acme.post("/v1/compositions", json=mix)
    text = {"data": {"purpose": "x"}, "files": {"file": ("t", "words " * 20)}}
    file = acme.post("/v1/files", **text).json()["id"]
    acme.delete(f"/v1/files/{file}")
    acme.delete("/v1/compositions/demo+mix")
    share = {"visibility": "public"}
    admin.put("/v1/adapters/demo+own/visibility", json=share, params={"tenant": "acme"})
    admin.put("/v1/tenants/acme/quota", json={"concurrent_jobs": 1})
    admin.patch("/v1/bases/demo", json={"serve": False})
    acme.delete("/v1/adapters/demo+own")
    acme.delete("/v1/adapters/demo+own")  # which is not there any more: no change
    assert acme.get("/v1/audit").status_code == 403
    changes = admin.get("/v1/audit", params={"tenant": "acme"}).json()["data"]
    assert [(change["action"], change["object"]) for change in reversed(changes)] == [
        ("key.create", changes[-1]["object"]),
        ("adapter.add", "demo+own"),
        ("composition.add", "demo+mix"),
        ("file.add", file),
        ("file.delete", file),
        ("composition.delete", "demo+mix"),
        ("adapter.publish", "demo+own"),
        ("quota.set", '{"concurrent_jobs":1}'),
        ("adapter.delete", "demo+own"),
    ]
    by = {change["action"]: (change["by"], change["request_id"]) for change in changes}
    assert by["adapter.add"] == ("acme", "one")
    assert by["adapter.publish"][0] == by["quota.set"][0] == "operators"
    assert by["key.create"] == ("command line or worker", None)
    (added_by,) = [c["key"] for c in changes if c["action"] == "adapter.add"]
    assert f"gw-{added_by}" == changes[-1]["object"]
    older = admin.get("/v1/audit", params={"before": changes[3]["number"], "limit": 1}).json()
    assert older["data"][0]["number"] < changes[3]["number"]


def test_what_failed_is_no_change(app: FastAPI, demo: httpx.Client, tmp_path: Path):
    catalog = app.state.catalog
    before = catalog.changes()
    with pytest.raises(Conflict):
        catalog.add_adapter("demo", "sql", tmp_path, "1" * 64, rank=2)
    assert catalog.changes() == before


def test_the_database_refuses_to_change_or_remove_a_row(
    app: FastAPI, demo: httpx.Client, settings: Settings
):
    count = len(app.state.catalog.changes())
    assert count > 0
    engine = database.connect(settings.database)
    for statement in (schema.audit.update().values(action="none"), schema.audit.delete()):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), engine.begin() as connection:
            connection.execute(statement)
    engine.dispose()
    assert len(app.state.catalog.changes()) == count


def test_the_command_line_lists_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GRAFTWORK_HOME", str(tmp_path / "home"))
    key = CliRunner().invoke(cli, ["keys", "create", "acme"]).stdout.strip()
    shown = CliRunner().invoke(cli, ["audit", "--json"]).stdout
    (change,) = json.loads(shown)
    assert (change["tenant"], change["action"]) == ("acme", "key.create")
    assert change["object"] == key[:15]
    assert key not in shown
    assert "key.create" in CliRunner().invoke(cli, ["audit"]).stdout
