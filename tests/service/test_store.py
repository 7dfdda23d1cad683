"""Catalog and disk: all is read again, what is damaged put aside, what is garbage goes."""

import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from service import content, database, schema
from service.catalog import Catalog
from service.cli import app as cli
from service.collection import Collector
from service.settings import Settings

TEXT = "a text of some length " * 20
HOLDERS = ("nothing", "base", "adapter", "generator", "profile", "file", "job")


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("GRAFTWORK_HOME", str(settings.home))
    return lambda *words: CliRunner().invoke(cli, words)


@pytest.fixture
def stored(demo: httpx.Client, app: FastAPI) -> tuple[Path, Path]:
    """An adapter and a text, where they lie."""
    form = {"data": {"purpose": "x"}, "files": {"file": ("t", TEXT)}}
    id = demo.post("/v1/files", **form).json()["id"]
    catalog = app.state.catalog
    return catalog.adapter("demo", "sql").path, catalog.file(id).path


def findings(result: Result) -> dict[str, str]:
    return {Path(row["path"]).name: row["kind"] for row in json.loads(result.stdout)}


def test_what_is_as_it_was_is_no_finding(stored: tuple[Path, Path], run: Callable[..., Result]):
    result = run("verify")
    assert (result.exit_code, result.stdout) == (0, "catalog and disk agree\n")
    assert run("gc", "--hours", "0").stdout == "there is no garbage\n"
    assert all(path.exists() for path in stored)


def test_a_changed_byte_a_lost_file_and_a_stray_one_are_found(
    stored: tuple[Path, Path], run: Callable[..., Result], settings: Settings
):
    adapter, text = stored
    weights = adapter / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    text.unlink()
    (settings.adapters / ("9" * 64)).mkdir()
    result = run("verify", "--json")
    assert result.exit_code == 1
    assert findings(result) == {
        adapter.name: "damaged",
        text.name: "missing",
        "9" * 64: "orphaned",
    }
    assert adapter.exists()
    (row,) = [
        row for row in json.loads(run("verify", "--repair", "--json").stdout) if row["quarantine"]
    ]
    aside = Path(row["quarantine"])
    assert (aside / weights.name).read_bytes() == content
    assert "has changed" in aside.with_name(f"{aside.name}.reason").read_text()
    assert findings(run("verify", "--json"))[adapter.name] == "missing"


def test_a_damaged_adapter_is_not_loaded_and_can_be_given_again(
    stored: tuple[Path, Path],
    demo: httpx.Client,
    upstream: Any,
    engines: Any,
    adapter_directory: Path,
    settings: Settings,
):
    adapter, _ = stored
    (adapter / "adapter_config.json").write_text("{}")
    for model in ("demo+sql", "demo+sql:0.5"):
        body = {"model": model, "prompt": "hello"}
        refused = demo.post("/v1/completions", json=body)
        assert refused.status_code == 500
        assert refused.json()["error"]["code"] == "content_damaged"
        assert "PUT /v1/adapters/demo+sql" in refused.json()["error"]["message"]
    assert engines.running["demo"].adapters == {}
    assert len(list(settings.quarantine.glob("*.reason"))) == 1
    again = {"name": "sql", "base": "demo", "path": str(adapter_directory)}
    assert demo.put("/v1/adapters/demo+sql", json=again).status_code == 200
    assert demo.post("/v1/completions", json=body).status_code == 200


class _Jobs:
    """Of jobs, all that the collector asks for."""

    def __init__(self) -> None:
        self.given: list[str] = []

    def in_use(self) -> str:
        return json.dumps(self.given)


@contextmanager
def store() -> Iterator[tuple[Settings, Catalog, _Jobs]]:
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(home=Path(folder) / "home", database_url=f"sqlite:///{folder}/c.db")
        catalog = Catalog(settings.database)
        base = Path(folder) / "b"
        base.mkdir()
        (base / "config.json").write_text("{}")
        catalog.add_base("b", base, "0" * 64)
        yield settings, catalog, _Jobs()
        catalog.close()


def hold(settings: Settings, catalog: Catalog, jobs: _Jobs, holder: str, digest: str) -> Path:
    """Make content and what refers to it; where it lies."""
    stores = {"file": settings.files, "adapter": settings.adapters}
    path = stores.get(holder, settings.artifacts).absolute() / digest
    path.mkdir(parents=True)
    (path / "content").write_text(digest)
    same = {"digest": digest, "created": 1, "bytes": 1}
    mine = {"tenant": "acme", "base": "b", "name": digest[-20:]}
    rows: dict[str, tuple[sa.Table, dict[str, Any]]] = {
        "base": (
            schema.bases,
            same | {"id": digest, "name": digest[-20:], "path": f"{path}/model", "config": {},
                    "serve": True, "tenant": "acme", "shared": False, "artifact": digest},
        ),
        "adapter": (schema.adapters, same | mine | {"path": str(path), "rank": 1, "shared": False}),
        "generator": (schema.generators, same | mine | {"path": str(path)}),
        "profile": (
            schema.profiles,
            {"adapter": digest, "base": "b", "path": f"{path}/profile.json", "summary": {},
             "created": 1},
        ),
        "file": (
            schema.files,
            same | {"tenant": "acme", "id": digest[-29:], "path": str(path), "filename": "f",
                    "purpose": "x"},
        ),
    }  # fmt: skip
    if holder == "job":
        jobs.given.append(f"{path}/model")
    elif holder in rows:
        table, row = rows[holder]
        engine = database.connect(settings.database)
        with database.writing(engine) as connection:
            connection.execute(table.insert(), [row])
        engine.dispose()
    return path


@hypothesis_settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(HOLDERS), max_size=8), st.booleans())
def test_what_is_referred_to_stays_and_the_rest_goes(holders: list[str], dry_run: bool):
    with store() as (settings, catalog, jobs):
        paths = {
            hold(settings, catalog, jobs, holder, f"{number:064x}"): holder
            for number, holder in enumerate(holders)
        }
        garbage = {path for path, holder in paths.items() if holder == "nothing"}
        found = list(Collector(settings, catalog, jobs, dry_run).collect(0))  # type: ignore[arg-type]
        assert {one.path for one in found} == garbage
        assert {one.bytes for one in found} <= {64}
        remain = set(paths) if dry_run else set(paths) - garbage
        assert {path for path in paths if path.exists()} == remain


def test_drafts_and_work_go_when_they_are_old_and_no_job_goes_on_with_them():
    with store() as (settings, catalog, jobs):
        for path in (settings.jobs / "prunejob-1", settings.jobs / "prunejob-2"):
            (path / "slice").mkdir(parents=True)
        (settings.adapters / ".staging-abc").mkdir(parents=True)
        (settings.jobs / ".worker-0").touch()
        jobs.given.append("prunejob-1")
        collector = Collector(settings, catalog, jobs)  # type: ignore[arg-type]
        assert list(collector.collect(3600)) == []
        names = {one.path.name for one in collector.collect(0)}
        assert names == {"prunejob-2", ".staging-abc"}
        assert {path.name for path in settings.jobs.iterdir()} == {"prunejob-1", ".worker-0"}


def test_garbage_is_collected_beside_uploads_that_come_and_go():
    with store() as (settings, catalog, jobs):
        over = threading.Event()

        def upload() -> None:
            while not over.is_set():
                with content.staging(settings.adapters) as staged:
                    (staged / "part").mkdir()
                    (staged / "part" / "text").write_text(TEXT)

        uploads = [threading.Thread(target=upload) for _ in range(2)]
        for thread in uploads:
            thread.start()
        try:
            collector = Collector(settings, catalog, jobs)  # type: ignore[arg-type]
            for _ in range(30):
                assert list(collector.collect(3600)) == []
        finally:
            over.set()
            for thread in uploads:
                thread.join()
