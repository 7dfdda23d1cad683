"""Adapters over HTTP: registered or uploaded whole, or not at all; deleted for real."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from safetensors.numpy import load_file, save_file

from service import content
from service.app import create_app
from service.settings import Settings

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def upload(
    gateway: httpx.Client, directory: Path, names: dict[str, str] | None = None, **fields: str
) -> httpx.Response:
    """Send the files of a directory, under the file names of `names` where it has them."""
    files = [
        ("files", ((names or {}).get(path.name, path.name), path.read_bytes()))
        for path in sorted(directory.iterdir())
    ]
    return gateway.post("/v1/adapters", data={"name": "new", "base": "demo"} | fields, files=files)


@pytest.fixture
def kept(demo: httpx.Client, settings: Settings) -> Callable[[], Any]:
    """What there is on disk and in the catalog."""

    def look() -> Any:
        on_disk = sorted(p.relative_to(settings.adapters) for p in settings.adapters.rglob("*"))
        return on_disk, demo.get("/v1/adapters").json()

    return look


def test_a_registered_adapter_is_a_model_below_its_base(demo: httpx.Client):
    adapter = demo.get("/v1/adapters/demo+sql").json()
    assert (adapter["id"], adapter["base"], adapter["rank"]) == ("demo+sql", "demo", 2)
    assert demo.get("/v1/adapters", params={"base": "demo"}).json()["data"] == [adapter]
    assert demo.get("/v1/adapters", params={"base": "other"}).json()["data"] == []
    model = demo.get("/v1/models/demo+sql").json()
    assert (model["parent"], model["root"]) == ("demo", adapter["digest"])


def test_an_upload_and_a_directory_of_the_same_content_are_the_same(
    demo: httpx.Client, adapter_directory: Path, settings: Settings
):
    uploaded = upload(demo, adapter_directory)
    assert uploaded.status_code == 201
    digest = demo.get("/v1/adapters/demo+sql").json()["digest"]
    assert uploaded.json()["digest"] == digest
    assert [path.name for path in settings.adapters.iterdir()] == [digest]


def test_evaluation_data_is_kept_with_the_adapter_and_other_files_are_not(
    demo: httpx.Client, adapter_directory: Path, settings: Settings
):
    (adapter_directory / "eval.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (adapter_directory / "optimizer.pt").write_bytes(b"pickle")
    body = {"name": "with-eval", "base": "demo", "path": str(adapter_directory)}
    digest = demo.post("/v1/adapters", json=body).json()["digest"]
    held = {path.name for path in (settings.adapters / digest).iterdir()}
    assert held == {CONFIG, WEIGHTS, "eval.jsonl"}


def test_what_was_registered_does_not_change_with_its_source(
    demo: httpx.Client, adapter_directory: Path, settings: Settings
):
    digest = demo.get("/v1/adapters/demo+sql").json()["digest"]
    shutil.rmtree(adapter_directory)
    assert (settings.adapters / digest / WEIGHTS).is_file()


def nan(directory: Path) -> None:
    tensors = load_file(directory / WEIGHTS)
    next(iter(tensors.values()))[0, 0] = np.nan
    save_file(tensors, directory / WEIGHTS)


def narrow(directory: Path) -> None:
    tensors = load_file(directory / WEIGHTS)
    save_file({name: tensor[:, :1].copy() for name, tensor in tensors.items()}, directory / WEIGHTS)


def truncate(directory: Path) -> None:
    (directory / WEIGHTS).write_bytes((directory / WEIGHTS).read_bytes()[:-4])


def dora(directory: Path) -> None:
    config = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps({**config, "use_dora": True}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (nan, "lora_A.weight holds NaN"),
        (narrow, "another base"),
        (truncate, "adapter_model.safetensors is not a valid safetensors file"),
        (dora, "adapter.use_dora"),
        (lambda d: (d / CONFIG).unlink(), "adapter_config.json missing"),
        (lambda d: (d / WEIGHTS).unlink(), "adapter_model.safetensors missing"),
        (lambda d: (d / WEIGHTS).rename(d / "adapter_model.bin"), "pickled weights"),
    ],
)
@pytest.mark.parametrize("way", ["directory", "upload"])
def test_nothing_remains_of_a_damaged_adapter(
    demo: httpx.Client,
    adapter_directory: Path,
    kept: Callable[[], Any],
    damage: Callable[[Path], None],
    said: str,
    way: str,
):
    before = kept()
    damage(adapter_directory)
    if way == "upload":
        response = upload(demo, adapter_directory)
    else:
        body = {"name": "new", "base": "demo", "path": str(adapter_directory)}
        response = demo.post("/v1/adapters", json=body)
    assert response.status_code == 400
    assert said in response.json()["error"]["message"]
    assert kept() == before


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"name": "../../etc"}, 400, "name"),
        ({"name": "a+b"}, 400, "name"),
        ({"name": "x" * 64}, 400, "name"),
        ({"name": ".hidden"}, 400, "name"),
        ({"base": "nowhere"}, 404, None),
        ({"base": "../demo"}, 400, "base"),
        ({"name": "sql"}, 409, None),
        ({"color": "red"}, 400, "color"),
    ],
)
def test_a_bad_field_is_named_and_nothing_remains(
    demo: httpx.Client,
    adapter_directory: Path,
    kept: Callable[[], Any],
    fields: dict[str, str],
    status: int,
    param: str | None,
):
    before = kept()
    path = {"path": str(adapter_directory)}
    body = {"name": "new", "base": "demo"} | path | fields
    for response in (
        upload(demo, adapter_directory, **fields),
        demo.post("/v1/adapters", json=body),
    ):
        assert response.status_code == status
        assert response.json()["error"]["param"] == param
    assert kept() == before


@pytest.mark.parametrize(
    "filename",
    ["../adapter_config.json", "/etc/passwd", "a/../../adapter_config.json", "config.json", "x.pt"],
)
def test_an_upload_may_only_have_the_files_of_an_adapter(
    demo: httpx.Client, adapter_directory: Path, kept: Callable[[], Any], filename: str
):
    before = kept()
    response = upload(demo, adapter_directory, names={CONFIG: filename})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "files"
    assert filename in response.json()["error"]["message"]
    assert kept() == before


def test_nothing_remains_when_the_database_fails_at_the_very_end(
    demo: httpx.Client, app: FastAPI, tmp_path: Path, write_adapter: Callable[..., Path], kept: Any
):
    def fail(_connection: Any) -> None:
        raise OSError("disk full")

    before = kept()
    directory = write_adapter(tmp_path / "other", seed=1)
    sa.event.listen(app.state.catalog._engine, "commit", fail, once=True)
    body = {"name": "new", "base": "demo", "path": str(directory)}
    assert demo.post("/v1/adapters", json=body).status_code == 500
    assert kept() == before


@pytest.mark.parametrize("path", ["/nowhere", "relative", "/etc/passwd", "/x\0y"])
def test_a_path_must_be_an_absolute_directory(demo: httpx.Client, path: str):
    body = {"name": "new", "base": "demo", "path": path}
    response = demo.post("/v1/adapters", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "path"


def test_an_upload_above_the_limit_is_refused(
    demo: httpx.Client, adapter_directory: Path, kept: Callable[[], Any]
):
    before = kept()
    (adapter_directory / "eval.jsonl").write_bytes(b"x" * (1 << 20))
    assert upload(demo, adapter_directory).status_code == 413
    assert kept() == before


def test_a_rank_above_the_engines_limit_is_refused(
    demo: httpx.Client, tmp_path: Path, write_adapter: Callable[..., Path]
):
    directory = write_adapter(tmp_path / "wide", r=9)  # engine_max_lora_rank is 8
    response = upload(demo, directory)
    assert response.status_code == 400
    assert "limit of 8" in response.json()["error"]["message"]


def test_a_deleted_adapter_leaves_engine_catalog_and_disk(
    demo: httpx.Client, upstream: Any, engines: Any, settings: Settings
):
    demo.post("/v1/completions", json={"model": "demo+sql"})
    assert len(engines.running["demo"].adapters) == 1
    response = demo.delete("/v1/adapters/demo+sql")
    assert response.json() == {"id": "demo+sql", "object": "adapter", "deleted": True}
    assert engines.running["demo"].adapters == {}
    assert list(settings.adapters.iterdir()) == []
    assert demo.get("/v1/adapters/demo+sql").status_code == 404
    assert demo.post("/v1/completions", json={"model": "demo+sql"}).status_code == 404
    assert demo.delete("/v1/adapters/demo+sql").status_code == 404


def test_an_adapter_can_be_deleted_while_its_engine_is_down(
    demo: httpx.Client, engines: Any, settings: Settings
):
    engines.held.add("demo")
    assert demo.delete("/v1/adapters/demo+sql").status_code == 200
    assert list(settings.adapters.iterdir()) == []


def test_content_stays_while_another_adapter_is_made_of_it(
    demo: httpx.Client, adapter_directory: Path, settings: Settings
):
    upload(demo, adapter_directory)
    demo.delete("/v1/adapters/demo+sql")
    assert len(list(settings.adapters.iterdir())) == 1
    demo.delete("/v1/adapters/demo+new")
    assert list(settings.adapters.iterdir()) == []


@pytest.mark.parametrize("id", ["demo", "demo+", "+sql", "demo+none", "..%2F..+x"])
def test_an_unknown_id_is_not_found(demo: httpx.Client, id: str):
    assert demo.get(f"/v1/adapters/{id}").status_code == 404
    assert demo.delete(f"/v1/adapters/{id}").status_code == 404


async def test_what_a_killed_process_left_is_swept_at_the_next_start(
    settings: Settings, engines: Any
):
    leftover = settings.adapters / f"{content.STAGING}old"
    leftover.mkdir(parents=True)
    app = create_app(settings, engines)
    with content.staging(settings.adapters) as current:
        for directory in (leftover, current):
            (directory / WEIGHTS).write_bytes(b"half")
        async with app.router.lifespan_context(app):
            assert list(settings.adapters.iterdir()) == [current]
