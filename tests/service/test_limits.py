"""Limits of tenants: requests a minute and at a time; no tenant pays for another."""

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.limits import Bucket
from service.settings import Settings


@pytest.fixture
def settings(settings: Settings) -> Settings:
    changes = {"tenant_requests_per_minute": 60, "tenant_concurrent_requests": 2}
    return settings.model_copy(update=changes)


@pytest.fixture
def client(app: FastAPI, gateway: httpx.Client) -> Callable[..., httpx.Client]:
    def make(tenant: str) -> httpx.Client:
        _, key = app.state.catalog.add_key(tenant, "", ("infer",))
        headers = {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=gateway.base_url, headers=headers, timeout=20)

    return make


def test_a_bucket_gives_its_capacity_at_once_and_then_as_it_fills():
    bucket = Bucket(60)

    def take() -> bool:
        if had := bucket.has(1):
            bucket.take()
        return had

    assert [take() for _ in range(61)] == [True] * 60 + [False]
    assert 0.5 < bucket.seconds_to(1) <= 1
    bucket.filled -= 2.0  # as if two seconds had passed
    assert [take() for _ in range(3)] == [True, True, False]


def test_answers_tell_what_remains(client: Callable[..., httpx.Client]):
    acme = client("acme")
    first, second = (acme.get("/v1/models").headers for _ in range(2))
    assert first["x-ratelimit-limit-requests"] == "60"
    assert first["x-ratelimit-remaining-requests"] == "59"
    assert int(second["x-ratelimit-remaining-requests"]) in (58, 59)
    assert second["x-ratelimit-reset-requests"].endswith("s")


def test_above_the_limit_the_answer_says_when_to_come_again(client: Callable[..., httpx.Client]):
    acme, umbra = client("acme"), client("umbra")
    for _ in range(200):
        if (response := acme.get("/v1/models")).status_code != 200:
            break
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    assert response.headers["x-ratelimit-remaining-requests"] == "0"
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert acme.get("/health").status_code == 200
    assert umbra.get("/v1/models").status_code == 200
    time.sleep(1.1)
    assert acme.get("/v1/models").status_code == 200


def test_no_more_requests_are_open_at_a_time_than_allowed(
    demo: httpx.Client, upstream: Any, client: Callable[..., httpx.Client]
):
    acme, umbra = client("acme"), client("umbra")
    body = {"model": "demo", "prompt": "forever", "stream": True}
    with (
        acme.stream("POST", "/v1/completions", json=body) as one,
        acme.stream("POST", "/v1/completions", json=body) as two,
    ):
        streams = [one.iter_raw(), two.iter_raw()]
        assert all(next(stream) for stream in streams)
        refused = acme.get("/v1/models")
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 0
        assert umbra.get("/v1/models").status_code == 200
    deadline = time.monotonic() + 20  # the gateway notices soon that both streams were left
    while acme.get("/v1/models").status_code == 429:
        assert time.monotonic() < deadline
        time.sleep(0.1)
