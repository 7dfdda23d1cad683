"""A served composition says what transformers says with the weighted sum of ΔW in its weights."""

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from service.engines import Engine, Engines

pytestmark = pytest.mark.engine
shared_loop = pytest.mark.asyncio(loop_scope="session")

Sum = Mapping[str, float]
SUMS: dict[str, Sum] = {
    "two": {"attention": 0.7, "mlp": 0.3},
    "negative": {"mlp": 1.5, "patterns": -0.6},
    "three": {"attention": 0.5, "mlp": -1.0, "patterns": 0.75},
    "one": {"patterns": 2.0},
}


@pytest.fixture(scope="module")
def deltas(slim: Path, adapters: dict[str, Path]) -> dict[str, dict[str, Tensor]]:
    """ΔW of every adapter as PEFT has it, by parameter of the base."""
    base = AutoModelForCausalLM.from_pretrained(slim, dtype=torch.float32).state_dict()

    def merged(adapter: Path) -> dict[str, Tensor]:
        model = AutoModelForCausalLM.from_pretrained(slim, dtype=torch.float32)
        return PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()

    return {
        name: {key: value - base[key] for key, value in merged(path).items()}
        for name, path in adapters.items()
    }


@pytest.fixture(scope="module")
def logprobs(
    slim: Path, deltas: dict[str, dict[str, Tensor]], prompts: list[list[int]]
) -> Callable[[Sum], list[Tensor]]:
    """Log probabilities of the token after each prompt, with a sum of adapters in the weights."""

    def of(weights: Sum) -> list[Tensor]:
        model = AutoModelForCausalLM.from_pretrained(slim, dtype=torch.float32)
        parameters = model.state_dict()
        for name, weight in weights.items():
            for key, delta in deltas[name].items():
                parameters[key] += weight * delta
        with torch.no_grad():
            return [
                model(torch.tensor([prompt])).logits[0, -1].log_softmax(dim=-1)
                for prompt in prompts
            ]

    return of


def parts_of(weights: Sum, adapters: Mapping[str, Path]) -> list[dict[str, Any]]:
    """A sum as a manifest has it."""
    return [
        {"name": name, "content": name, "path": str(adapters[name]), "weight": weight}
        for name, weight in weights.items()
    ]


@pytest_asyncio.fixture(loop_scope="session")
async def engine(
    engines: Engines, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Engine:
    """The engine with all sums loaded; it has fewer slots than there are sums."""
    engine = engines.get("slim")
    for name, weights in SUMS.items():
        manifest = tmp_path_factory.mktemp("manifests") / f"{name}.json"
        manifest.write_text(json.dumps({"parts": parts_of(weights, adapters)}))
        await engine.ensure_adapter(f"slim+*@{name}", manifest)
    for name, path in adapters.items():
        await engine.ensure_adapter(f"slim+{name}@1", path)
    return engine


async def served(engine: Engine, model: str, prompt: list[int]) -> dict[int, float]:
    """Log probabilities of the likeliest next tokens."""
    body: dict[str, Any] = {"model": model, "prompt": prompt, "max_tokens": 1, "logprobs": 5}
    response = await engine.client.post(
        "/v1/completions", json={**body, "temperature": 0, "return_tokens_as_token_ids": True}
    )
    assert response.is_success, response.text
    top = response.json()["choices"][0]["logprobs"]["top_logprobs"][0]
    return {int(token.removeprefix("token_id:")): value for token, value in top.items()}


@shared_loop
async def test_sums_plain_adapters_and_the_base_agree_with_transformers_in_mixed_batches(
    engine: Engine,
    adapters: dict[str, Path],
    prompts: list[list[int]],
    logprobs: Callable[[Sum], list[Tensor]],
):
    models: dict[str, Sum] = {"slim": {}}
    models |= {f"slim+{name}@1": {name: 1.0} for name in adapters}
    models |= {f"slim+*@{name}": weights for name, weights in SUMS.items()}
    expected = {model: logprobs(weights) for model, weights in models.items()}
    rows = [(model, i) for i in range(len(prompts)) for model in models] * 2
    answers = await asyncio.gather(*(served(engine, m, prompts[i]) for m, i in rows))
    for (model, i), answer in zip(rows, answers, strict=True):
        for token, value in answer.items():
            assert value == pytest.approx(expected[model][i][token].item(), abs=1e-4), model


@shared_loop
async def test_a_sum_of_an_adapter_that_does_not_fit_is_refused_and_leaves_no_trace(
    engine: Engine, tmp_path: Path
):
    manifest = tmp_path / "broken.json"
    parts = [{"name": "gone", "content": "0", "path": str(tmp_path / "gone"), "weight": 1.0}]
    manifest.write_text(json.dumps({"parts": parts}))
    with pytest.raises(Exception, match="adapter_model.safetensors"):
        await engine.ensure_adapter("slim+*@broken", manifest)
    residency = await engine.residency()
    assert "slim+*@broken" not in {adapter["name"] for adapter in residency["adapters"]}
    assert residency["unnamed"] == 0


@shared_loop
async def test_a_sum_that_was_merged_into_one_plain_adapter_says_the_same(
    engine: Engine,
    slim: Path,
    adapters: dict[str, Path],
    prompts: list[list[int]],
    logprobs: Callable[[Sum], list[Tensor]],
    tmp_path: Path,
):
    built = tmp_path / "built"
    for name in ("one", "two"):  # the others have more atoms than this engine takes
        weights = SUMS[name]
        manifest = {"parts": parts_of(weights, adapters), "strategy": {"name": "cat"}}
        manifest |= {"base": str(slim), "destination": str(built / name)}
        (tmp_path / f"{name}.json").write_text(json.dumps(manifest))
        await engine.ensure_adapter(f"slim+*@{name}.merged", tmp_path / f"{name}.json")
        for prompt, expected in zip(prompts, logprobs(weights), strict=True):
            for token, value in (await served(engine, f"slim+*@{name}.merged", prompt)).items():
                assert value == pytest.approx(expected[token].item(), abs=1e-4), name
        await engine.unload_adapter(f"slim+*@{name}.merged")
    assert {path.name for path in built.iterdir()} == {"one", "two"}  # whole, and no draft
