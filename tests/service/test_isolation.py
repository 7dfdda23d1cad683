"""What one tenant has and does is nothing that another could learn: names, paths, refusals."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from pruning.recipe import PruneSpec, Recipe, Text
from service.privacy import public

DIGESTS = ("1" * 64, "2" * 64)
URLS = "ask GET /v1/models for 3/4 of it, or see https://vllm.ai/docs/lora"
TEXT = "a text of some length " * 20


@pytest.fixture
def operators(client_of: Callable[..., httpx.Client]) -> httpx.Client:
    return client_of("operators", "admin")


@pytest.fixture
def slim(
    app: FastAPI, demo: httpx.Client, tmp_path: Path, write_base: Any, write_adapter: Any
) -> Callable[..., None]:
    """Publish a slim base of demo with an adapter, as a job of a tenant does."""

    def publish(tenant: str, digest: str, seed: int) -> None:
        artifact = tmp_path / digest
        write_base(artifact / "model", seed=seed)  # an entry that makes the content differ
        write_adapter(artifact / "adapters" / "carried", seed=seed)
        text = Text(file="file-1")
        recipe = Recipe(name="slim", base="demo", target=0.3, calibration=text, evaluation=text)
        paths = {"base": tmp_path, "calibration": tmp_path, "evaluation": tmp_path}
        spec = PruneSpec(recipe=recipe, adapters={}, tenant=tenant, **paths)
        app.state.catalog.publish(spec, artifact, digest)

    return publish


@pytest.fixture
def both(slim: Callable[..., None]) -> None:
    """Two tenants have a slim base of one name."""
    for number, tenant in enumerate(("acme", "umbra")):
        slim(tenant, DIGESTS[number], number)


@pytest.fixture
def upstreams(
    both: None, app: FastAPI, demo: httpx.Client, serve_upstream: Any
) -> Iterator[list[Any]]:
    """What stands behind the slim bases of both."""
    catalog = app.state.catalog
    ids = [catalog.of(tenant).base("slim").id for tenant in ("acme", "umbra")]
    with serve_upstream(ids[0]) as one, serve_upstream(ids[1]) as two:
        while demo.get("/ready").status_code != 200:
            pass
        yield [one, two]


def complete(client: httpx.Client, model: str, **body: Any) -> httpx.Response:
    return client.post("/v1/completions", json={"model": model, "prompt": "hello", **body})


def test_a_name_of_a_base_stands_for_each_tenants_own(
    both: None, acme: httpx.Client, umbra: httpx.Client, client_of: Callable[..., httpx.Client]
):
    found = [one.get("/v1/bases/slim").json() for one in (acme, umbra)]
    assert [base["artifact"] for base in found] == list(DIGESTS)
    assert {base["parent"] for base in found} == {"demo"}
    for one in (acme, umbra):
        ids = {model["id"] for model in one.get("/v1/models").json()["data"]}
        assert ids == {"demo", "slim", "slim+carried"}
    for path in ("/v1/bases/slim", "/v1/adapters/slim+carried", "/v1/models/slim"):
        assert client_of("third").get(path).status_code == 404
    digests = {one.get("/v1/adapters/slim+carried").json()["digest"] for one in (acme, umbra)}
    assert len(digests) == 2
    (listed,) = acme.get("/v1/adapters?base=slim").json()["data"]
    assert (listed["id"], listed["base"]) == ("slim+carried", "slim")


def test_each_is_answered_by_the_engine_of_its_own_base(
    upstreams: list[Any], acme: httpx.Client, umbra: httpx.Client
):
    for number, one in enumerate((acme, umbra)):
        for model in ("slim", "slim+carried", "slim+carried:0.5"):
            assert complete(one, model, prompt=f"of {number}").status_code == 200
    for number, upstream in enumerate(upstreams):
        assert {request["prompt"] for request in upstream.requests} == {f"of {number}"}
        assert len(upstream.requests) == 3


def test_what_another_tenant_has_hinders_no_name(
    slim: Callable[..., None], acme: httpx.Client, umbra: httpx.Client, operators: httpx.Client
):
    slim("acme", DIGESTS[0], 0)
    form = {"data": {"purpose": "calibration"}, "files": {"file": ("t", TEXT)}}

    def prune(one: httpx.Client, name: str) -> httpx.Response:
        sample = {"file": one.post("/v1/files", **form).json()["id"]}
        sample |= {"sequences": 1, "length": 8}
        recipe = {"name": name, "base": "demo", "target": 0.2, "ffn_multiple": 1, "adapters": []}
        return one.post(
            "/v1/pruning/jobs", json=recipe | {"calibration": sample, "evaluation": sample}
        )

    assert prune(acme, "slim").status_code == 409
    assert prune(umbra, "slim").status_code == 200  # though acme has that name
    assert prune(acme, "other").status_code == 200
    assert prune(umbra, "other").status_code == 200  # though acme's job is making that name
    assert prune(umbra, "demo").status_code == 409  # everybody sees demo
    directory = operators.get("/v1/bases/demo").json()["path"]
    new = {"name": "slim", "path": directory}
    assert operators.post("/v1/bases", json=new).status_code == 201
    assert acme.get("/v1/bases/slim").json()["artifact"] == DIGESTS[0]
    assert umbra.get("/v1/bases/slim").json()["artifact"] is None


def test_a_path_is_told_to_admins_alone(acme: httpx.Client, operators: httpx.Client):
    assert operators.get("/v1/bases/demo").json()["path"].startswith("/")
    assert acme.get("/v1/bases/demo").json()["path"] is None
    assert {base["path"] for base in acme.get("/v1/bases").json()["data"]} == {None}


def share(client: httpx.Client, path: str, to: str = "public", tenant: str = "") -> httpx.Response:
    params = {"tenant": tenant} if tenant else {}
    return client.put(f"{path}/visibility", json={"visibility": to}, params=params)


def test_a_base_is_made_public_by_an_admin_and_private_by_its_owner(
    slim: Callable[..., None], acme: httpx.Client, umbra: httpx.Client, operators: httpx.Client
):
    slim("acme", DIGESTS[0], 0)
    path = "/v1/bases/slim"
    assert share(acme, path).status_code == 403
    assert share(operators, path).status_code == 404
    assert share(operators, path, tenant="acme").json()["visibility"] == "public"
    assert umbra.get(path).json()["artifact"] == DIGESTS[0]
    assert umbra.get("/v1/adapters/slim+carried").status_code == 404
    for refused in (share(umbra, path, "private"), share(umbra, path, "private", "acme")):
        assert refused.status_code in (403, 404)
    assert share(acme, path, "private").json()["visibility"] == "private"
    assert umbra.get(path).status_code == 404


def test_a_base_that_others_build_on_stays_public(
    slim: Callable[..., None],
    acme: httpx.Client,
    umbra: httpx.Client,
    operators: httpx.Client,
    adapter_directory: Path,
):
    slim("acme", DIGESTS[0], 0)
    share(operators, "/v1/bases/slim", tenant="acme")
    files = [("files", (p.name, p.read_bytes())) for p in sorted(adapter_directory.iterdir())]
    form = {"name": "theirs", "base": "slim"}
    assert umbra.post("/v1/adapters", data=form, files=files).status_code == 201
    refused = share(acme, "/v1/bases/slim", "private")
    assert refused.status_code == 409
    assert "theirs" not in refused.text
    assert umbra.delete("/v1/adapters/slim+theirs").status_code == 200
    assert share(acme, "/v1/bases/slim", "private").status_code == 200


def test_one_name_is_public_once(
    both: None, acme: httpx.Client, umbra: httpx.Client, operators: httpx.Client
):
    assert share(operators, "/v1/bases/slim", tenant="acme").status_code == 200
    assert share(operators, "/v1/bases/slim", tenant="umbra").status_code == 409
    assert umbra.get("/v1/bases/slim").json()["artifact"] == DIGESTS[1]  # one's own goes before


def test_a_public_composition_is_what_its_tenant_made_it(
    operators: httpx.Client,
    umbra: httpx.Client,
    upstream: Any,
    engines: Any,
    tmp_path: Path,
    write_adapter: Callable[..., Path],
):
    def upload(one: httpx.Client, seed: int) -> str:
        directory = write_adapter(tmp_path / str(seed), seed=seed)
        files = [("files", (p.name, p.read_bytes())) for p in sorted(directory.iterdir())]
        answer = one.post("/v1/adapters", data={"name": "part", "base": "demo"}, files=files)
        return str(answer.json()["digest"])

    theirs = upload(operators, 1)
    new = {"name": "mix", "base": "demo", "adapters": {"part": 0.5}}
    assert operators.post("/v1/compositions", json=new).status_code == 201
    refused = share(operators, "/v1/compositions/demo+mix")
    assert refused.status_code == 409
    assert "demo+part" in refused.json()["error"]["message"]
    assert share(operators, "/v1/adapters/demo+part").status_code == 200
    assert share(operators, "/v1/compositions/demo+mix").json()["visibility"] == "public"
    own = upload(umbra, 2)
    name = complete(umbra, "demo+mix").json()["echo"]["model"]
    content = engines.running["demo"].contents[name]
    assert theirs in content
    assert own not in content
    listed = [model["id"] for model in umbra.get("/v1/models").json()["data"]]
    assert sorted(listed) == ["demo", "demo+mix", "demo+part"]
    refused = share(operators, "/v1/adapters/demo+part", "private")
    assert refused.status_code == 409  # the composition would show it
    assert share(operators, "/v1/compositions/demo+mix", "private").status_code == 200
    assert complete(umbra, "demo+mix").status_code == 404
    assert umbra.delete("/v1/compositions/demo+mix").status_code == 404


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "/home/op/.graftwork/adapters/ab/adapter_model.safetensors is bad",
            "adapter_model.safetensors is bad",
        ),
        ("no such file: '/srv/a/x/y'", "no such file: 'y'"),
        ("open(/srv/home/): denied", "open(a directory): denied"),
        (
            "demo+sql@0123456789ab.0123abcd and slim~0123456789abcdef+x@0123456789ab",
            "an adapter and an adapter",
        ),
        ("the base slim~0123456789abcdef stopped", "the base slim stopped"),
        (
            "ask GET /v1/models, 3/4 of it, or https://vllm.ai/docs/lora",
            "ask GET /v1/models, 3/4 of it, or https://vllm.ai/docs/lora",
        ),
    ],
)
def test_what_is_told_has_no_path_and_no_name_of_engines(said: str, told: str):
    assert public(said) == told


def test_an_engines_refusal_is_told_and_its_failure_is_not(acme: httpx.Client, upstream: Any):
    refused = complete(
        acme, "demo", prompt="refuse with /srv/home/adapters/ab/weights of demo+x@0123456789ab"
    )
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["message"] == "no: weights of an adapter"
    assert (error["type"], error["param"], error["code"]) == ("BadRequestError", "n", 400)
    failed = complete(acme, "demo", prompt="fail")
    assert failed.status_code == 500
    assert failed.json()["error"]["code"] == "engine_error"
    assert "broken" not in failed.text
