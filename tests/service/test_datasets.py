"""Data sets by name: folders of the server, and a hub that is a real server on a real socket."""

import hashlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from pruning.errors import InvalidInput
from pruning.sources import Source
from service.datasets import Datasets
from service.settings import Settings

COMMIT = "c" * 40
ROWS = b'{"text": "from the hub"}\n'


class Hub(BaseHTTPRequestHandler):
    """Answers for one file of one data set as the hub does."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        *_, file = self.path.rpartition("/resolve/")
        if not self.path.startswith("/datasets/owner/rows/"):
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif not file.startswith(("main/", COMMIT)):
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif not file.endswith("/train.jsonl"):
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            digest = hashlib.sha256(ROWS).hexdigest()
            self.answer(200, ROWS, {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT})

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        return None


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def datasets(tmp_path: Path, hub: str) -> Datasets:
    folder = tmp_path / "datasets" / "wiki" / "en"
    folder.mkdir(parents=True)
    (folder / "train.txt").write_text("from the disk")
    return Datasets(tmp_path / "datasets", tmp_path / "hub", hub)


def source(name: str, part: str, **more: str) -> Source:
    return Source.model_validate({"dataset": name, "part": part, **more})


def test_a_folder_of_the_server_is_a_data_set(datasets: Datasets):
    found = datasets.path(source("wiki", "en/train.txt"), "calibration")
    assert found.read_text() == "from the disk"
    assert datasets.path(source("wiki/en", "train.txt"), "calibration") == found


def test_a_data_set_of_the_hub_is_downloaded_and_kept(datasets: Datasets, tmp_path: Path):
    asked = source("owner/rows", "train.jsonl")
    found = datasets.path(asked, "calibration")
    assert found.read_bytes() == ROWS
    assert found.is_relative_to(tmp_path / "hub")
    away = Datasets(datasets.folder, datasets.cache, "http://127.0.0.1:9")
    assert away.path(asked, "calibration") == found


@pytest.mark.parametrize(
    ("asked", "field", "words"),
    [
        (source("wiki", "de.txt"), "part", "en/train.txt"),
        (source("owner/rows", "test.jsonl"), "part", "owner/rows"),
        (source("owner/rows", "train.jsonl", revision="v9"), "revision", "owner/rows"),
        (source("owner/none", "train.jsonl"), "dataset", "put its files into that folder"),
    ],
    ids=["no file", "no part", "no revision", "no repository"],
)
def test_what_is_not_there_is_named(asked: Source, field: str, words: str, datasets: Datasets):
    with pytest.raises(InvalidInput, match=words) as refused:
        datasets.path(asked, "calibration.sources.1")
    assert refused.value.field == f"calibration.sources.1.{field}"


def test_without_a_network_the_error_says_what_to_do(tmp_path: Path):
    away = Datasets(tmp_path / "datasets", tmp_path / "hub", "http://127.0.0.1:9")
    with pytest.raises(InvalidInput, match="or upload the text") as refused:
        away.path(source("owner/rows", "train.jsonl"), "training")
    assert (refused.value.field, refused.value.status) == ("training.dataset", 400)


def test_a_job_mixes_an_upload_a_data_set_and_an_adapters_own_text(
    demo: httpx.Client, settings: Settings, write_adapter: Any, tmp_path: Path
):
    folder = settings.datasets / "wiki"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text('{"text": "from the disk"}')
    own = write_adapter(tmp_path / "own", 1)
    (own / "calibration.jsonl").write_text('{"prompt": "a", "completion": "b"}')
    adapter = {"name": "own", "base": "demo", "path": str(own)}
    assert demo.post("/v1/adapters", json=adapter).status_code == 201
    upload = {"data": {"purpose": "calibration"}, "files": {"file": ("t", b"uploaded text")}}
    file = {"file": demo.post("/v1/files", **upload).json()["id"]}
    part = {"dataset": "wiki", "part": "train.jsonl", "field": "text", "weight": 2.5}

    def create(*sources: Any) -> httpx.Response:
        recipe = {"name": "slim", "base": "demo", "target": 0.2, "evaluation": file}
        calibration = {"sources": [*sources], "length": 8}
        return demo.post("/v1/pruning/jobs", json={**recipe, "calibration": calibration})

    for wrong, field in [
        ({"adapter": "sql"}, "adapter"),  # came without a calibration.jsonl
        ({"adapter": "nobody"}, "adapter"),
        ({"dataset": "wiki", "part": "none.txt"}, "part"),
        ({"file": "file-none"}, "file"),
    ]:
        refused = create(file, wrong)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == f"calibration.sources.1.{field}"
    job = create(file, part, {"adapter": "own"}).json()
    sources = job["recipe"]["calibration"]["sources"]
    assert [one["weight"] for one in sources] == [1, 2.5, 1]
    assert sources[2]["adapter"] == "own"
