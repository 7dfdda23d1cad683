"""The official OpenAI client against the whole product: bases, slim bases and every adapter."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.engine

DEMO = Path(__file__).parents[2] / "deploy" / "demo"
ADAPTERS = sorted(path.name for path in (DEMO / "adapters").iterdir())


@pytest.fixture(scope="module")
def client(gateway: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway}/v1", api_key="none", timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict[str, str]]]:
    """Held-out prompts and completions of each adapter's own task."""
    texts = {name: (DEMO / "adapters" / name / "eval.jsonl").read_text() for name in ADAPTERS}
    return {name: [json.loads(row) for row in text.split("\n")[:4]] for name, text in texts.items()}


def complete(client: openai.OpenAI, model: str, prompt: str, tokens: int = 16) -> str:
    answer = client.completions.create(model=model, prompt=prompt, max_tokens=tokens, temperature=0)
    return answer.choices[0].text


def log_likelihood(client: openai.OpenAI, model: str, prompt: str, completion: str) -> float:
    """Of a completion's first 200 characters after the end of its prompt."""
    prompt = prompt[-200:]
    answer = client.completions.create(
        model=model, prompt=prompt + completion[:200], max_tokens=1, echo=True, logprobs=0
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    tokens = zip(logprobs.text_offset or [], logprobs.token_logprobs or [], strict=True)
    return sum(value for offset, value in tokens if offset >= len(prompt) and value is not None)


def figure(gateway: str, name: str, **labels: str) -> float:
    """The sum of a metric over the labels that are not named."""
    text = httpx.get(f"{gateway}/metrics", timeout=30).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_models_lists_both_bases_and_the_adapters_of_each(
    client: openai.OpenAI, models: tuple[str, ...]
):
    listed = {model.id: model.model_dump() for model in client.models.list()}
    assert set(listed) == set(models)
    for id, model in listed.items():
        base, _, adapter = id.partition("+")
        assert model["parent"] == (base if adapter else None)
        assert model["ready"]
    assert client.models.retrieve("demo-slim+wikisql").id == "demo-slim+wikisql"


def test_every_model_completes(client: openai.OpenAI, models: tuple[str, ...]):
    for model in models:
        answer = client.completions.create(
            model=model, prompt="The history of", max_tokens=8, temperature=0
        )
        assert answer.usage is not None
        assert answer.usage.completion_tokens > 0
        assert answer.model.split("@")[0] == model


@pytest.mark.parametrize("base", ["demo", "demo-slim"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_makes_its_own_task_likelier(
    client: openai.OpenAI, rows: dict[str, list[dict[str, str]]], base: str, adapter: str
):
    def likelihood(model: str) -> float:
        return sum(log_likelihood(client, model, **row) for row in rows[adapter])

    assert likelihood(f"{base}+{adapter}") > likelihood(base)


def test_a_streamed_chat_says_what_an_unstreamed_one_says(
    client: openai.OpenAI, models: tuple[str, ...]
):
    for model in models:
        request = {
            "model": model,
            "messages": [{"role": "user", "content": "Tell me about the sea."}],
            "max_tokens": 12,
            "temperature": 0,
        }
        whole = client.chat.completions.create(**request).choices[0].message.content
        chunks = list(client.chat.completions.create(**request, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
        assert len(chunks) > 1  # the role, then text; a busy engine joins tokens into one chunk


def test_requests_to_all_models_at_once_get_the_answers_that_each_gets_alone(
    client: openai.OpenAI, models: tuple[str, ...], rows: dict[str, list[dict[str, str]]]
):
    pairs = [(model, row["prompt"]) for model in models for row in rows["e2e_nlg"][:2]]
    alone = [complete(client, *pair) for pair in pairs]
    with ThreadPoolExecutor(len(pairs)) as pool:
        together = list(pool.map(lambda pair: complete(client, *pair), pairs))
    assert together == alone


def test_an_unknown_model_is_not_found_and_near_names_are_offered(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError) as caught:
        complete(client, "demo-slim+wikisq", "x")
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert "demo-slim+wikisql" in caught.value.message


@pytest.mark.parametrize("stream", [False, True])
def test_vllms_own_refusals_reach_the_client(client: openai.OpenAI, stream: bool):
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="demo", prompt="x", temperature=-1, stream=stream)
    with pytest.raises(openai.BadRequestError, match="context length|max_tokens"):
        complete(client, "demo", "x", tokens=100_000)


def test_what_vllm_adds_to_the_api_passes_through(client: openai.OpenAI):
    answer = client.completions.create(
        model="demo",
        prompt="One",
        max_tokens=4,
        temperature=0,
        logprobs=2,
        extra_body={"min_tokens": 4, "ignore_eos": True, "return_token_ids": True},
    )
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.tokens or []) == 4
    assert len(answer.choices[0].model_dump()["token_ids"]) == 4


def test_the_engine_stops_when_the_client_leaves(client: openai.OpenAI, gateway: str):
    def generated() -> float:
        return figure(gateway, "vllm:generation_tokens_total", engine="demo")

    before = generated()
    stream = client.completions.create(
        model="demo",
        prompt="Once",
        n=64,  # together they take far longer than it takes to notice that the client left
        max_tokens=480,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    stream.close()
    last = -1.0
    while (now := generated()) != last:
        last = now
        time.sleep(2)
    assert 0 < last - before < 64 * 480


def test_an_uploaded_adapter_serves_until_it_is_deleted(client: openai.OpenAI, gateway: str):
    source = DEMO / "adapters" / "wikisql"
    files = [("files", (path.name, path.read_bytes())) for path in source.iterdir()]
    with httpx.Client(base_url=gateway, timeout=60) as raw:
        form = {"name": "again", "base": "demo"}
        assert raw.post("/v1/adapters", data=form, files=files).status_code == 201
        prompt = "Question: how many\nSQL:"
        same = complete(client, "demo+again", prompt), complete(client, "demo+wikisql", prompt)
        assert same[0] == same[1]
        assert raw.delete("/v1/adapters/demo+again").status_code == 200
    with pytest.raises(openai.NotFoundError):
        complete(client, "demo+again", prompt)
    assert complete(client, "demo+wikisql", prompt) == same[1]


def test_an_adapter_of_the_dense_base_does_not_fit_the_slim_one(gateway: str):
    body = {"name": "dense", "base": "demo-slim", "path": str(DEMO / "adapters" / "wikisql")}
    response = httpx.post(f"{gateway}/v1/adapters", json=body, timeout=60)
    assert response.status_code == 400
    assert "another base" in response.json()["error"]["message"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) absent")
def test_promtool_accepts_the_metrics_of_gateway_and_engines(gateway: str):
    text = httpx.get(f"{gateway}/metrics", timeout=30).text
    check = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True
    )
    # exit code 3: it parses, but a style is complained of; vLLM's names have a colon, and keep it
    complaints = [line for line in check.stderr.splitlines() if not line.startswith("vllm:")]
    assert (check.returncode, complaints) == (3, [])
    for base in ("demo", "demo-slim"):
        assert figure(gateway, "vllm:generation_tokens_total", engine=base) > 0
    assert "vllm:lora_requests_info" not in text
