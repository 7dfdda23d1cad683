"""Compositions through the whole product: spelled, named, built, replaced, and pushed out."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.numpy import load_file, save_file

pytestmark = pytest.mark.engine

DEMO = Path(__file__).parents[2] / "deploy" / "demo"
ADAPTERS = sorted(path.name for path in (DEMO / "adapters").iterdir())
WEIGHTS = "adapter_model.safetensors"
PROMPT = "Question: how many\nSQL:"


@pytest.fixture(scope="module")
def client(gateway: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway, timeout=120) as client:
        yield client


def ask(client: httpx.Client, model: str, **body: Any) -> str:
    asked = {"model": model, "prompt": PROMPT, "max_tokens": 12, "temperature": 0, **body}
    response = client.post("/v1/completions", json=asked)
    assert response.is_success, response.text
    text: str = response.json()["choices"][0]["text"]
    return text


@pytest.mark.parametrize("base", ["demo", "demo-slim"])
def test_an_adapter_of_weight_1_is_itself_and_of_almost_nothing_the_base(
    client: httpx.Client, base: str
):
    for name in ADAPTERS[:2]:
        assert ask(client, f"{base}+{name}:1") == ask(client, f"{base}+{name}")
        assert ask(client, f"{base}+{name}@switch") == ask(client, f"{base}+{name}")
        assert ask(client, f"{base}+{name}:0.0001") == ask(client, base)


def test_halves_of_an_adapter_under_two_names_are_the_adapter(client: httpx.Client):
    path = str(DEMO / "adapters" / "wikisql")
    assert client.post(
        "/v1/adapters", json={"name": "half", "base": "demo", "path": path}
    ).is_success
    expected = ask(client, "demo+wikisql", max_tokens=32)
    assert ask(client, "demo+wikisql:0.5+half:0.5", max_tokens=32) == expected
    svd = ask(client, "demo+wikisql:0.5+half:0.5@svd:8", max_tokens=32)
    assert svd == expected
    assert client.delete("/v1/adapters/demo+half").is_success


def test_an_adapter_trained_again_answers_in_compositions_at_once(
    client: httpx.Client, tmp_path: Path
):
    def submission(factor: float) -> dict[str, str]:
        directory = tmp_path / str(factor)
        directory.mkdir()
        source = DEMO / "adapters" / "wikisql"
        (directory / "adapter_config.json").write_bytes(
            (source / "adapter_config.json").read_bytes()
        )
        tensors = load_file(source / WEIGHTS)
        scaled = {k: (v * factor if "lora_B" in k else v) for k, v in tensors.items()}
        save_file(scaled, directory / WEIGHTS)
        return {"name": "trained", "base": "demo", "path": str(directory)}

    other = ADAPTERS[0]
    assert client.post("/v1/adapters", json=submission(1.0)).is_success
    before = ask(client, f"demo+trained+{other}:0.001", max_tokens=32)
    assert before == ask(client, "demo+wikisql", max_tokens=32)
    assert client.put("/v1/adapters/demo+trained", json=submission(0.0)).is_success
    assert ask(client, f"demo+trained+{other}:0.001", max_tokens=32) == ask(
        client, "demo", max_tokens=32
    )
    assert client.delete("/v1/adapters/demo+trained").is_success


def test_more_compositions_than_an_engine_keeps_give_no_wrong_answer_and_leak_nothing(
    client: httpx.Client, gateway: str
):
    weights = (0.5, 1.0, -0.5)
    models = [
        f"demo+{first}:{weight}+{second}:1"
        for first, second in combinations(ADAPTERS[:3], 2)
        for weight in weights
    ]
    expected = {model: ask(client, model) for model in models}
    assert len(set(expected.values())) > len(models) / 2  # a mix-up would show
    with ThreadPoolExecutor(8) as pool:
        asked = (models + models[::-1]) * 2
        assert list(pool.map(lambda model: ask(client, model), asked)) == [
            expected[m] for m in asked
        ]
    ask(client, models[0])
    text = client.get("/metrics").text
    loaded = next(
        line for line in text.splitlines() if line.startswith("graftwork_compositions_loaded ")
    )
    assert float(loaded.split()[1]) <= 2 * 3  # a limit of three for each of two engines


def test_adapters_take_turns_and_two_of_the_same_are_one(client: httpx.Client):
    path = str(DEMO / "adapters" / "wikisql")
    new = {"name": "twin", "base": "demo", "path": path}
    assert client.post("/v1/adapters", json=new).is_success
    expected = ask(client, "demo+wikisql", max_tokens=32)
    assert ask(client, "demo+wikisql+twin@switch", max_tokens=32) == expected
    assert ask(client, f"demo+wikisql+{ADAPTERS[0]}@switch", max_tokens=32) != expected
    assert client.delete("/v1/adapters/demo+twin").is_success


def test_a_sum_that_repeats_becomes_one_adapter_and_says_the_same(client: httpx.Client):
    model = f"demo+{ADAPTERS[0]}:0.6+{ADAPTERS[1]}:0.7"
    before = ask(client, model, max_tokens=32)
    for _ in range(30):
        ask(client, model, max_tokens=1)
    deadline = time.monotonic() + 60
    while merged(client) < 1:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert ask(client, model, max_tokens=32) == before


def merged(client: httpx.Client) -> float:
    """How many sums have been merged."""
    name = 'graftwork_composition_merges_total{outcome="done"} '
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))


def test_a_named_composition_is_listed_and_answers(client: httpx.Client):
    parts = dict.fromkeys(ADAPTERS[:2], 0.5)
    new = {"name": "blend", "base": "demo", "adapters": parts, "pinned": True}
    made = client.post("/v1/compositions", json=new)
    assert made.is_success, made.text
    assert ask(client, "demo+blend") == ask(client, made.json()["spelled"])
    assert "demo+blend" in json.dumps(client.get("/v1/models").json())
    assert client.delete("/v1/compositions/demo+blend").is_success
