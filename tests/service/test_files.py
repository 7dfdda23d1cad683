"""Files over HTTP: UTF-8 texts, named by their content."""

import hashlib
from typing import Any

import httpx
import pytest

from service.settings import Settings

TEXT = "Grüße aus dem Wald\n".encode()


def upload(
    gateway: httpx.Client, content: bytes = TEXT, name: str = "wald.txt", **form: str
) -> httpx.Response:
    data = {"purpose": "calibration"} | form
    return gateway.post("/v1/files", data=data, files={"file": (name, content)})


def test_a_text_comes_back_as_it_was(gateway: httpx.Client):
    file = upload(gateway).json()
    assert file["id"] == "file-" + hashlib.sha256(TEXT).hexdigest()[:24]
    assert (file["bytes"], file["filename"]) == (len(TEXT), "wald.txt")
    assert (file["object"], file["purpose"]) == ("file", "calibration")
    assert gateway.get(f"/v1/files/{file['id']}").json() == file
    assert gateway.get(f"/v1/files/{file['id']}/content").content == TEXT
    assert gateway.get("/v1/files").json()["data"] == [file]
    assert gateway.get("/v1/files", params={"purpose": "evaluation"}).json()["data"] == []


def test_the_same_text_is_kept_once(gateway: httpx.Client, settings: Settings):
    assert upload(gateway).json() == upload(gateway, name="again.txt").json()
    assert len(list(settings.files.iterdir())) == 1


def test_a_deleted_text_is_gone(gateway: httpx.Client, settings: Settings):
    id = upload(gateway).json()["id"]
    assert gateway.delete(f"/v1/files/{id}").json()["deleted"] is True
    assert list(settings.files.iterdir()) == []
    for response in (
        gateway.get(f"/v1/files/{id}"),
        gateway.get(f"/v1/files/{id}/content"),
        gateway.delete(f"/v1/files/{id}"),
    ):
        assert response.status_code == 404


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"content": b"\xff\xfe\x00"}, 400, "file"),
        ({"content": TEXT[:3]}, 400, "file"),
        ({"content": b""}, 400, "file"),
        ({"content": b" \n\t"}, 400, "file"),
        ({"content": b"x" * (1 << 20)}, 413, None),
        ({"name": "../secret.txt"}, 400, "file"),
        ({"name": "..\\secret.txt"}, 400, "file"),
        ({"name": "x" * 256}, 400, "file"),
        ({"purpose": "a b"}, 400, "purpose"),
        ({"purpose": ""}, 400, "purpose"),
    ],
)
def test_what_is_no_text_is_refused_and_not_kept(
    gateway: httpx.Client, settings: Settings, change: dict[str, Any], status: int, param: str
):
    response = upload(gateway, **change)
    assert response.status_code == status
    assert response.json()["error"]["param"] == param
    assert not settings.files.exists() or list(settings.files.iterdir()) == []
    assert gateway.get("/v1/files").json()["data"] == []


def test_a_form_without_a_file_says_so(gateway: httpx.Client):
    response = gateway.post("/v1/files", data={"purpose": "calibration"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "file"
