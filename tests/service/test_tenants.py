"""Two tenants on one gateway: each sees its own and what is shared, and nothing of the other."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

TEXT = "a text of acme's own " * 20


def upload(client: httpx.Client, directory: Path, name: str = "secret-sql") -> httpx.Response:
    files = [("files", (path.name, path.read_bytes())) for path in sorted(directory.iterdir())]
    return client.post("/v1/adapters", data={"name": name, "base": "demo"}, files=files)


@pytest.fixture
def directories(tmp_path: Path, write_adapter: Callable[..., Path]) -> tuple[Path, Path]:
    """Two adapters of different content."""
    return write_adapter(tmp_path / "one", seed=1), write_adapter(tmp_path / "two", seed=2)


def complete(client: httpx.Client, model: str, **body: Any) -> httpx.Response:
    return client.post("/v1/completions", json={"model": model, "prompt": "hello", **body})


def publish(client: httpx.Client, path: str, to: str = "public") -> httpx.Response:
    return client.put(f"{path}/visibility", json={"visibility": to})


def anonymous(response: httpx.Response, id: str) -> tuple[int, str]:
    """An answer, less the name that it repeats."""
    return response.status_code, response.text.replace(id, "ID")


def test_anothers_things_answer_as_if_they_did_not_exist(
    acme: httpx.Client, umbra: httpx.Client, upstream: Any, directories: tuple[Path, Path]
):
    assert upload(acme, directories[0]).status_code == 201
    composition = {"name": "secret-mix", "base": "demo", "adapters": {"secret-sql": 0.5}}
    assert acme.post("/v1/compositions", json=composition).status_code == 201
    form = {"data": {"purpose": "calibration"}, "files": {"file": ("t", TEXT)}}
    file = acme.post("/v1/files", **form).json()["id"]
    sample = {"file": file, "sequences": 1, "length": 8}
    recipe = {"name": "slim", "base": "demo", "target": 0.2, "ffn_multiple": 1}
    recipe |= {"calibration": sample, "evaluation": sample}
    job = acme.post("/v1/pruning/jobs", json=recipe).json()["id"]
    for path, id, none in (
        ("/v1/adapters/{}", "demo+secret-sql", "demo+qqqqqq-qqq"),
        ("/v1/compositions/{}", "demo+secret-mix", "demo+qqqqqq-qqq"),
        ("/v1/models/{}", "demo+secret-sql", "demo+qqqqqq-qqq"),
        ("/v1/models/{}", "demo+secret-mix", "demo+qqqqqq-qqq"),
        ("/v1/files/{}", file, "file-" + 24 * "0"),
        ("/v1/files/{}/content", file, "file-" + 24 * "0"),
        ("/v1/pruning/jobs/{}", job, "prunejob-" + 24 * "0"),
        ("/v1/pruning/jobs/{}/events", job, "prunejob-" + 24 * "0"),
        ("/v1/pruning/jobs/{}/report", job, "prunejob-" + 24 * "0"),
    ):
        assert acme.get(path.format(id)).status_code in (200, 404 if "report" in path else 200)
        there, nowhere = umbra.get(path.format(id)), umbra.get(path.format(none))
        assert anonymous(there, id) == anonymous(nowhere, none)
        assert there.status_code == 404
    for method, path, id, none in (
        ("DELETE", "/v1/adapters/{}", "demo+secret-sql", "demo+qqqqqq-qqq"),
        ("DELETE", "/v1/compositions/{}", "demo+secret-mix", "demo+qqqqqq-qqq"),
        ("DELETE", "/v1/files/{}", file, "file-" + 24 * "0"),
        ("POST", "/v1/pruning/jobs/{}/cancel", job, "prunejob-" + 24 * "0"),
    ):
        there, nowhere = (umbra.request(method, path.format(x)) for x in (id, none))
        assert anonymous(there, id) == anonymous(nowhere, none)
        assert there.status_code == 404
    for model, none in (
        ("demo+secret-sql", "demo+qqqqqq-qqq"),
        ("demo+secret-sql:0.5", "demo+qqqqqq-qqq:0.5"),
    ):
        there, nowhere = complete(umbra, model), complete(umbra, none)
        assert there.status_code == nowhere.status_code == 404
        assert there.json()["error"]["message"].replace(model.partition(":")[0], "ID") == (
            nowhere.json()["error"]["message"].replace(none.partition(":")[0], "ID")
        )
    theirs = umbra.post("/v1/pruning/jobs", json=recipe | {"name": "other"})
    assert theirs.status_code == 400
    assert theirs.json()["error"]["param"] == "calibration.file"


def test_lists_hold_ones_own_and_what_is_shared(
    acme: httpx.Client, umbra: httpx.Client, directories: tuple[Path, Path]
):
    upload(acme, directories[0])
    acme.post("/v1/files", data={"purpose": "x"}, files={"file": ("t", TEXT)})
    ids = {model["id"] for model in umbra.get("/v1/models").json()["data"]}
    assert ids == {"demo"}
    assert {m["id"] for m in acme.get("/v1/models").json()["data"]} == {"demo", "demo+secret-sql"}
    for path in ("/v1/adapters", "/v1/compositions", "/v1/files", "/v1/pruning/jobs"):
        assert umbra.get(path).json()["data"] == []


def test_one_name_stands_for_each_tenants_own_adapter_under_concurrent_traffic(
    acme: httpx.Client,
    umbra: httpx.Client,
    upstream: Any,
    engines: Any,
    directories: tuple[Path, Path],
):
    clients = acme, umbra
    digests = [
        upload(client, directory).json()["digest"]
        for client, directory in zip(clients, directories, strict=True)
    ]
    assert digests[0] != digests[1]

    def ask(number: int) -> tuple[int, str, str]:
        who = number % 2
        model = ("demo+secret-sql", "demo+secret-sql:0.5", "demo")[number % 3]
        stream = {"cache_salt": "mine"} if number % 5 == 0 else {}
        echo = complete(clients[who], model, prompt=f"{who}", **stream).json()["echo"]
        assert echo["prompt"] == f"{who}"
        return who, echo["model"], echo["cache_salt"]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(120)))
    engine = engines.running["demo"]
    for kind in (1, 2):  # of a request: the engine's name of it, and its salt
        of = [{answer[kind] for answer in answers if answer[0] == who} for who in (0, 1)]
        assert (of[0] & of[1]) == ({"demo"} if kind == 1 else set())
    for who, name, _ in answers:
        own, other = digests[who], digests[1 - who]
        if name == "demo":
            continue
        paths = engine.contents[name] or str(engine.adapters[name])
        assert own in paths
        assert other not in paths
    seen = json.dumps([upstream.requests, list(engine.adapters)])
    assert "acme" not in seen
    assert "umbra" not in seen


def test_the_same_content_of_two_tenants_is_apart_in_the_engine(
    acme: httpx.Client, umbra: httpx.Client, upstream: Any, engines: Any, directories: Any
):
    for client in (acme, umbra):
        upload(client, directories[0])
    models = ("demo+secret-sql", "demo+secret-sql:0.5")
    names = [complete(c, m).json()["echo"]["model"] for m in models for c in (acme, umbra)]
    assert len(set(names)) == 4
    assert acme.delete("/v1/adapters/demo+secret-sql").status_code == 200
    assert names[0] not in engines.running["demo"].adapters
    assert names[1] in engines.running["demo"].adapters
    assert complete(umbra, "demo+secret-sql").status_code == 200
    assert Path(engines.running["demo"].adapters[names[1]]).is_dir()


def test_a_client_cannot_choose_the_salt_of_another(
    acme: httpx.Client, umbra: httpx.Client, upstream: Any
):
    salt = complete(acme, "demo").json()["echo"]["cache_salt"]
    assert complete(acme, "demo").json()["echo"]["cache_salt"] == salt
    assert complete(umbra, "demo", cache_salt=salt).json()["echo"]["cache_salt"] != salt
    assert complete(acme, "demo", cache_salt="x").json()["echo"]["cache_salt"] != salt


def test_no_private_name_is_in_the_metrics(
    acme: httpx.Client, client_of: Callable[..., httpx.Client], upstream: Any, directories: Any
):
    upload(acme, directories[0])
    complete(acme, "demo+secret-sql")
    complete(acme, "demo+secret-sql", stream=True)
    complete(acme, "demo+secret-sql:0.5")
    text = client_of("operators", "admin").get("/metrics").text
    assert 'model="demo+*"' in text
    assert "secret" not in text
    assert "acme" not in text


def test_a_shared_adapter_is_everybodys_to_use_and_its_owners_to_change(
    umbra: httpx.Client,
    client_of: Callable[..., httpx.Client],
    upstream: Any,
    directories: tuple[Path, Path],
):
    owner, path = client_of("operators", "admin"), "/v1/adapters/demo+common"
    digest = upload(owner, directories[0], "common").json()["digest"]
    assert umbra.get(path).status_code == 404
    assert publish(owner, path).json()["visibility"] == "public"
    assert umbra.get(path).json()["digest"] == digest
    name = complete(umbra, "demo+common").json()["echo"]["model"]
    assert name == complete(owner, "demo+common").json()["echo"]["model"]
    assert umbra.delete(path).status_code == 404
    composition = {"name": "mix", "base": "demo", "adapters": {"common": 0.5}}
    assert umbra.post("/v1/compositions", json=composition).status_code == 201
    for refused in (owner.delete(path), publish(owner, path, "private")):
        assert refused.status_code == 409
        assert "mix" not in refused.text
    umbra.delete("/v1/compositions/demo+mix")
    assert publish(owner, path, "private").status_code == 200
    assert umbra.get(path).status_code == 404


def test_ones_own_adapter_goes_before_a_shared_one_of_its_name(
    umbra: httpx.Client, client_of: Callable[..., httpx.Client], directories: tuple[Path, Path]
):
    owner, path = client_of("operators", "admin"), "/v1/adapters/demo+common"
    upload(owner, directories[0], "common")
    publish(owner, path)
    digest = upload(umbra, directories[1], "common").json()["digest"]
    (listed,) = umbra.get("/v1/adapters").json()["data"]
    assert listed["digest"] == digest == umbra.get(path).json()["digest"]
    assert umbra.delete(path).status_code == 200
    assert umbra.get(path).json()["digest"] != digest


def test_sharing_takes_the_scope_admin(acme: httpx.Client, directories: tuple[Path, Path]):
    upload(acme, directories[0])
    path = "/v1/adapters/demo+secret-sql"
    assert publish(acme, path).status_code == 403


def test_the_same_idempotency_key_of_two_tenants_is_two_jobs(
    acme: httpx.Client, umbra: httpx.Client
):
    recipe = {"name": "slim", "base": "demo", "target": 0.2, "ffn_multiple": 1, "adapters": []}
    ids = []
    for number, client in enumerate((acme, umbra)):
        form = {"data": {"purpose": "calibration"}, "files": {"file": ("t", TEXT)}}
        sample = {"file": client.post("/v1/files", **form).json()["id"]}
        sample |= {"sequences": 1, "length": 8}
        body = recipe | {"name": f"slim-{number}", "calibration": sample, "evaluation": sample}
        headers = {"idempotency-key": "same"}
        ids.append(client.post("/v1/pruning/jobs", json=body, headers=headers).json()["id"])
    assert ids[0] != ids[1]
    for id, client in zip(ids, (acme, umbra), strict=True):
        assert [job["id"] for job in client.get("/v1/pruning/jobs").json()["data"]] == [id]
