"""Quotas of tenants: tokens as the engine counts them, jobs, bytes; for all, and for one."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from service.cli import app as cli
from service.limits import Bucket
from service.quotas import Quota
from service.settings import Settings
from service.usage import Meter

TEXT = "a text of some length " * 20


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"tenant_tokens_per_minute": 600})


@pytest.fixture
def set_quota(client_of: Callable[..., httpx.Client]) -> Callable[..., dict[str, Any]]:
    admin = client_of("operators", "admin")

    def set_it(tenant: str, **quota: Any) -> dict[str, Any]:
        answer = admin.put(f"/v1/tenants/{tenant}/quota", json=quota)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    return set_it


def ask(client: httpx.Client, tokens: int, **body: Any) -> httpx.Response:
    """A completion that takes so many tokens."""
    prompt = f"take {tokens} tokens"
    return client.post("/v1/completions", json={"model": "demo", "prompt": prompt, **body})


def remaining(response: httpx.Response) -> int:
    return int(response.headers["x-ratelimit-remaining-tokens"])


def test_a_bucket_in_debt_gives_nothing_until_that_is_paid():
    bucket = Bucket(60)
    bucket.take(90)
    assert not bucket.has(1)
    assert 30.5 < bucket.seconds_to(1) <= 31
    bucket.filled -= 31
    assert bucket.has(1)
    assert bucket.headers("tokens")["x-ratelimit-remaining-tokens"] in ("0", "1")


def test_a_bucket_that_shrinks_holds_no_more_than_it_can():
    bucket = Bucket(100)
    bucket.fill(10)
    assert (bucket.level, bucket.headers("tokens")["x-ratelimit-limit-tokens"]) == (10, "10")


def test_an_answer_tells_the_tokens_that_remain_after_it(
    client_of: Callable[..., httpx.Client], upstream: Any
):
    acme = client_of("acme")
    first = ask(acme, 200)
    assert first.status_code == 200
    assert first.headers["x-ratelimit-limit-tokens"] == "600"
    assert remaining(first) in range(400, 403)
    assert 18 < float(first.headers["x-ratelimit-reset-tokens"].removesuffix("s")) <= 20
    assert remaining(ask(acme, 300)) in range(100, 110)
    assert remaining(acme.get("/v1/models")) in range(100, 120)


def test_above_the_tokens_of_a_minute_completions_wait_and_nothing_else(
    client_of: Callable[..., httpx.Client], upstream: Any
):
    acme, umbra = client_of("acme"), client_of("umbra")
    assert ask(acme, 605).status_code == 200  # more than there is: it is known too late
    refused = ask(acme, 1)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert "600 tokens in a minute" in refused.json()["error"]["message"]
    assert 0 < int(refused.headers["retry-after"]) <= 1
    assert remaining(refused) == 0
    assert acme.get("/v1/models").status_code == 200
    assert ask(umbra, 1).status_code == 200
    time.sleep(int(refused.headers["retry-after"]))
    assert ask(acme, 1).status_code == 200


def test_a_stream_is_counted_and_its_client_sees_what_it_asked_for(
    client_of: Callable[..., httpx.Client], upstream: Any
):
    acme = client_of("acme")
    plain = ask(acme, 200, stream=True)
    assert '"usage"' not in plain.text
    assert plain.text.endswith("data: [DONE]\n\n")
    assert upstream.requests[-1]["stream_options"] == {"include_usage": True}
    assert remaining(acme.get("/v1/models")) in range(400, 410)
    told = ask(acme, 200, stream=True, stream_options={"include_usage": True})
    assert '"usage": {"total_tokens": 200}' in told.text
    assert remaining(acme.get("/v1/models")) in range(200, 220)


def test_a_stream_that_is_left_costs_its_events(
    client_of: Callable[..., httpx.Client], upstream: Any
):
    acme = client_of("acme")
    body = {"model": "demo", "prompt": "forever", "stream": True}
    with acme.stream("POST", "/v1/completions", json=body) as answer:
        events = answer.iter_raw()
        for _ in range(50):
            next(events)
    assert upstream.left.wait(20)
    deadline = time.monotonic() + 20
    while remaining(acme.get("/v1/models")) > 560:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_refused_requests_cost_no_tokens(client_of: Callable[..., httpx.Client], upstream: Any):
    acme = client_of("acme")
    for prompt, status in (("refuse", 400), ("fail", 500)):
        body = {"model": "demo", "prompt": prompt}
        answer = acme.post("/v1/completions", json=body)
        assert answer.status_code == status
        assert remaining(answer) == 600


async def test_a_meter_leaves_alone_what_it_does_not_understand():
    for body in (b"no json", b"[1]", b'{"stream": true, "stream_options": 7}', b'{"stream": 1}'):
        parts = [{"type": "http.request", "body": body[:2], "more_body": True}]
        parts += [{"type": "http.request", "body": body[2:]}]

        async def receive(parts: list[dict[str, Any]] = parts) -> dict[str, Any]:
            return parts.pop(0)

        assert (await Meter(receive).receive())["body"] == body


def test_one_tenants_quota_goes_before_that_of_all(
    client_of: Callable[..., httpx.Client], set_quota: Callable[..., dict[str, Any]], upstream: Any
):
    shown = set_quota("acme", tokens_per_minute=10, concurrent_jobs=2)
    assert shown["quota"]["tokens_per_minute"] == 10
    acme, umbra = client_of("acme"), client_of("umbra")
    assert acme.get("/v1/models").headers["x-ratelimit-limit-tokens"] == "10"
    assert umbra.get("/v1/models").headers["x-ratelimit-limit-tokens"] == "600"
    assert acme.get("/v1/tenant").json() == shown
    assert set_quota("umbra", tokens_per_minute=None)["quota"]["tokens_per_minute"] is None
    assert set_quota("acme")["quota"]["tokens_per_minute"] == 600


def test_quotas_are_set_by_admins_alone_and_must_make_sense(
    client_of: Callable[..., httpx.Client], set_quota: Callable[..., dict[str, Any]]
):
    acme, admin = client_of("acme"), client_of("operators", "admin")
    assert acme.put("/v1/tenants/acme/quota", json={}).status_code == 403
    assert acme.get("/v1/tenants").status_code == 403
    assert acme.get("/v1/tenants/umbra").status_code == 403
    for quota, param in (
        ({"stored_bytes": -1}, "stored_bytes"),
        ({"tokens": 1}, "tokens"),
        ({"tokens_per_minute": "many"}, "tokens_per_minute"),
    ):
        answer = admin.put("/v1/tenants/acme/quota", json=quota)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert admin.put("/v1/tenants/a+b/quota", json={}).status_code == 400
    names = [tenant["id"] for tenant in admin.get("/v1/tenants").json()["data"]]
    assert names == ["acme", "local", "operators"]


def test_nothing_is_kept_of_what_would_exceed_the_bytes(
    client_of: Callable[..., httpx.Client],
    set_quota: Callable[..., dict[str, Any]],
    settings: Settings,
    adapter_directory: Path,
    write_adapter: Callable[..., Path],
    tmp_path: Path,
):
    acme = client_of("acme")
    size = sum(file.stat().st_size for file in adapter_directory.iterdir())
    set_quota("acme", stored_bytes=size + 600)

    def upload(directory: Path, name: str) -> httpx.Response:
        files = [("files", (path.name, path.read_bytes())) for path in sorted(directory.iterdir())]
        return acme.post("/v1/adapters", data={"name": name, "base": "demo"}, files=files)

    def text(words: str) -> httpx.Response:
        form = {"data": {"purpose": "x"}, "files": {"file": ("t", words)}}
        return acme.post("/v1/files", **form)

    other = write_adapter(tmp_path / "other", seed=3)
    assert upload(other, "one").status_code == 201
    refused = upload(adapter_directory, "two")
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "insufficient_quota"
    assert f"of the {size + 600:,} that the tenant may" in refused.json()["error"]["message"]
    assert text(TEXT).status_code == 200
    assert text(TEXT).status_code == 200  # the same file
    assert text(TEXT + "more").status_code == 403
    used = acme.get("/v1/tenant").json()["used"]["stored_bytes"]
    assert used == size + len(TEXT)
    kept = {path.name for path in settings.adapters.iterdir()}
    assert len(kept) == 2  # of acme and of "local"
    assert len(list(settings.files.iterdir())) == 1
    assert acme.delete("/v1/adapters/demo+one").status_code == 200
    assert upload(adapter_directory, "two").status_code == 201


def test_a_tenant_has_no_more_jobs_at_a_time_than_allowed(
    client_of: Callable[..., httpx.Client], set_quota: Callable[..., dict[str, Any]]
):
    acme, umbra = client_of("acme"), client_of("umbra")
    set_quota("acme", concurrent_jobs=2)

    def prune(asks: httpx.Client, name: str, key: str = "") -> httpx.Response:
        form = {"data": {"purpose": "calibration"}, "files": {"file": ("t", TEXT)}}
        sample = {"file": asks.post("/v1/files", **form).json()["id"]}
        sample |= {"sequences": 1, "length": 8}
        recipe = {"name": name, "base": "demo", "target": 0.2, "ffn_multiple": 1, "adapters": []}
        recipe |= {"calibration": sample, "evaluation": sample}
        headers = {"idempotency-key": key or name}
        return asks.post("/v1/pruning/jobs", json=recipe, headers=headers)

    first = prune(acme, "one")
    assert (first.status_code, prune(acme, "two").status_code) == (200, 200)
    assert acme.get("/v1/tenant").json()["used"]["jobs"] == 2
    refused = prune(acme, "three")
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0
    assert "2 jobs" in refused.json()["error"]["message"]
    assert prune(acme, "one").json()["id"] == first.json()["id"]  # asked again, it is no other
    assert prune(umbra, "four").status_code == 200
    acme.post(f"/v1/pruning/jobs/{first.json()['id']}/cancel")
    assert prune(acme, "three").status_code == 200
    set_quota("acme", stored_bytes=1)
    assert prune(acme, "five").status_code == 403


def test_the_command_line_shows_and_sets_quotas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GRAFTWORK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GRAFTWORK_TENANT_CONCURRENT_JOBS", "3")

    def run(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(cli, ["tenants", *words])
        assert result.exit_code == code, result.output
        return result.output

    assert json.loads(run("quota", "acme", "--json")) == Quota(concurrent_jobs=3).model_dump()
    run("quota", "acme", "tokens_per_minute=1000", "concurrent_jobs=none")
    shown = json.loads(run("quota", "acme", "stored_bytes=5", "--json"))
    expected = Quota(tokens_per_minute=1000, concurrent_jobs=None, stored_bytes=5)
    assert shown == expected.model_dump()
    assert (
        json.loads(run("quota", "acme", "concurrent_jobs=default", "--json"))["concurrent_jobs"]
        == 3
    )
    (row,) = json.loads(run("list", "--json"))
    assert (row["tenant"], row["quota"]["tokens_per_minute"]) == ("acme", 1000)
    assert "1,000" in run("list")
    for change in ("tokens=1", "stored_bytes=-1", "stored_bytes"):
        assert "NAME=NUMBER" in run("quota", "acme", change, code=1)
