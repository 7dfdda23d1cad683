"""Completions through the gateway: untouched but for the model, both ways, to the bitter end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

PATHS = ("/v1/completions", "/v1/chat/completions")


def complete(gateway: httpx.Client, **body: Any) -> httpx.Response:
    return gateway.post("/v1/completions", json={"model": "demo", "prompt": "hello", **body})


def error(response: httpx.Response) -> dict[str, Any]:
    assert set(response.json()) == {"error"}
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    return response.json()["error"]


@pytest.mark.parametrize("path", PATHS)
def test_everything_but_the_model_passes_through(demo: httpx.Client, upstream: Any, path: str):
    body = {
        "model": "demo+sql",
        "messages": [{"role": "user", "content": "ä 😀 \0"}],
        "temperature": 0.1,
        "seed": 2**63,
        "nested": {"anything": [None, True, 1e-300]},
    }
    answer = demo.post(path, json=body).json()
    assert answer["path"] == path
    digest = demo.get("/v1/adapters/demo+sql").json()["digest"]
    assert answer["echo"] == body | {"model": f"demo+sql@{digest[:12]}"}


def test_the_bare_base_keeps_its_name(demo: httpx.Client, upstream: Any):
    assert complete(demo).json()["echo"]["model"] == "demo"


def test_an_adapter_can_be_asked_for_by_its_exact_content(demo: httpx.Client, upstream: Any):
    exact = f"demo+sql@{demo.get('/v1/adapters/demo+sql').json()['digest'][:12]}"
    assert complete(demo, model=exact).json()["echo"]["model"] == exact
    assert complete(demo, model="demo+sql@000000000000").status_code == 404


def test_an_adapter_is_loaded_from_its_own_copy_before_its_first_use(
    demo: httpx.Client, upstream: Any, engines: Any, settings: Any
):
    name = complete(demo, model="demo+sql").json()["echo"]["model"]
    path = engines.running["demo"].adapters[name]
    assert path.parent == settings.adapters
    assert (path / "adapter_model.safetensors").is_file()


def test_an_adapter_that_the_engine_refuses_is_a_client_error(
    demo: httpx.Client, upstream: Any, engines: Any
):
    engines.running["demo"].rejects = True
    response = complete(demo, model="demo+sql")
    assert response.status_code == 400
    assert error(response)["code"] == "adapter_rejected"


def test_the_request_id_reaches_the_engine_and_comes_back(demo: httpx.Client, upstream: Any):
    headers = {"x-request-id": "abc-1"}
    response = demo.post("/v1/completions", json={"model": "demo"}, headers=headers)
    assert response.headers["x-request-id"] == "abc-1"
    assert upstream.headers[0]["x-request-id"] == "abc-1"
    assert complete(demo).headers["x-request-id"] != "abc-1"


def test_a_stream_arrives_byte_for_byte_event_by_event(demo: httpx.Client, upstream: Any):
    body = {"model": "demo", "prompt": "hello", "stream": True}
    with demo.stream("POST", "/v1/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        chunks = list(response.iter_raw())
    assert b"".join(chunks) == (
        b'data: {"text": "\xc3\xa4"}\n\ndata: {}\r\n: odd but legal\n\ndata: [DONE]\n\n'
    )
    assert all(chunk.endswith(b"\n\n") for chunk in chunks)
    assert len(chunks) > 1


def test_the_engines_own_errors_pass_through(demo: httpx.Client, upstream: Any):
    for stream in (False, True):
        response = complete(demo, prompt="refuse", stream=stream)
        assert response.status_code == 400
        assert error(response)["param"] == "n"
    assert complete(demo, prompt="fail").json()["error"]["code"] == "engine_error"


def test_a_failure_of_an_engine_that_is_dying_is_worth_a_retry(demo: httpx.Client, upstream: Any):
    upstream.healthy = False
    response = complete(demo, prompt="fail")
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0


def test_a_stream_whose_engine_dies_ends_with_an_error_event(demo: httpx.Client, upstream: Any):
    body = {"model": "demo", "prompt": "die", "stream": True}
    with demo.stream("POST", "/v1/completions", json=body) as response:
        chunks = response.iter_text()
        assert next(chunks) == 'data: {"text": "ä"}\n\n'
        upstream.may_die.set()
        events = "".join(chunks).split("\n\n")
    lost = json.loads(events[0].removeprefix("data: "))["error"]
    assert (lost["code"], lost["type"]) == ("engine_unavailable", "server_error")
    assert events[1:] == [""]


def test_the_engine_stops_when_the_client_leaves_a_stream(demo: httpx.Client, upstream: Any):
    body = {"model": "demo", "prompt": "forever", "stream": True}
    with demo.stream("POST", "/v1/completions", json=body) as response:
        events = response.iter_raw()  # let go, it would close the stream
        next(events)
        assert not upstream.left.is_set()
    assert upstream.left.wait(60)


def test_the_engine_stops_when_the_client_does_not_wait_for_an_answer(
    demo: httpx.Client, upstream: Any
):
    with pytest.raises(httpx.ReadTimeout):
        demo.post("/v1/completions", json={"model": "demo", "prompt": "wait"}, timeout=0.5)
    assert upstream.left.wait(60)


def test_an_engine_that_is_not_ready_asks_for_patience(
    demo: httpx.Client, upstream: Any, engines: Any
):
    engines.held.add("demo")
    response = complete(demo)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "7"
    assert error(response)["code"] == "engine_unavailable"


def test_an_engine_that_does_not_answer_asks_for_patience(demo: httpx.Client):
    response = complete(demo)  # no upstream listens on its socket
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0


def test_other_engines_serve_on_while_one_is_down(
    demo: httpx.Client, upstream: Any, tmp_path: Path, write_base: Callable[..., Path]
):
    other = {"name": "other", "path": str(write_base(tmp_path / "other"))}
    assert demo.post("/v1/bases", json=other).status_code == 201
    assert complete(demo, model="other").status_code == 503
    assert complete(demo).status_code == 200


@pytest.mark.parametrize("model", ["demmo", "demo+sq", "demo+sql+none", "demo@0", "", "../demo"])
def test_an_unknown_model_is_not_found_and_near_ones_are_named(
    demo: httpx.Client, upstream: Any, model: str
):
    response = complete(demo, model=model)
    assert response.status_code == 404
    assert error(response)["code"] == "model_not_found"
    assert error(response)["param"] == "model"
    if model in ("demmo", "demo+sq"):
        assert "did you mean demo" in error(response)["message"]


def test_a_base_that_is_not_served_is_no_model(demo: httpx.Client, upstream: Any):
    demo.patch("/v1/bases/demo", json={"serve": False})
    assert complete(demo).status_code == 404


@pytest.mark.parametrize(
    ("content", "param"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"[" * 50_000, "body"),
        (b"\xff\xfe", "body"),
        (b"[1]", "body"),
        (b"{}", "model"),
        (b'{"model": 1}', "model"),
        (b'{"model": null}', "model"),
    ],
)
def test_a_body_that_names_no_model_is_refused(
    demo: httpx.Client, upstream: Any, content: bytes, param: str
):
    response = demo.post("/v1/completions", content=content)
    assert response.status_code == 400
    assert error(response)["param"] == param
    assert upstream.requests == []


def test_a_body_above_the_limit_is_refused(demo: httpx.Client, upstream: Any):
    response = complete(demo, prompt="x" * (1 << 16))
    assert response.status_code == 413
    assert error(response)["code"] == "payload_too_large"
    assert upstream.requests == []
