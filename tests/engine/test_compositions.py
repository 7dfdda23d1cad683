"""A served composition says what transformers says with the weighted sum of ΔW in its weights."""

import asyncio
import json
from collections.abc import Callable, Mapping
from functools import partial
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


TURNS: Sum = {"attention": 0.7, "mlp": 1.5, "patterns": -0.6}  # in this order
PERIODS = (1, 3)


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
    for period in PERIODS:
        manifest = tmp_path_factory.mktemp("manifests") / "turns.json"
        manifest.write_text(json.dumps({"parts": parts_of(TURNS, adapters), "period": period}))
        await engine.ensure_adapter(f"slim+*@turns{period}", manifest)
    for name, path in adapters.items():
        await engine.ensure_adapter(f"slim+{name}@1", path)
    return engine


@pytest.fixture(scope="module")
def by_turns(
    slim: Path, deltas: dict[str, dict[str, Tensor]]
) -> Callable[[list[int], int], Tensor]:
    """Log probabilities after each token, one adapter at a time, (tokens, vocabulary)."""

    def of(ids: list[int], period: int) -> Tensor:
        model = AutoModelForCausalLM.from_pretrained(slim, dtype=torch.float32)
        turn_T = torch.arange(len(ids)) // period % len(TURNS)

        def hook(key: str, _module: Any, given: tuple[Tensor], output: Tensor) -> Tensor:
            for i, (name, weight) in enumerate(TURNS.items()):
                added = weight * given[0] @ deltas[name][key].T
                output = output + (turn_T == i)[None, :, None] * added
            return output

        for key in next(iter(deltas.values())):
            if key.endswith("proj.weight"):
                module = model.get_submodule(key.removesuffix(".weight"))
                module.register_forward_hook(partial(hook, key))
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)

    return of


async def generated(engine: Engine, model: str, prompt: list[int], count: int) -> dict[str, Any]:
    """The ids and the log probabilities of what is said after a prompt."""
    body: dict[str, Any] = {"model": model, "prompt": prompt, "max_tokens": count, "logprobs": 1}
    body |= {"temperature": 0, "ignore_eos": True, "return_tokens_as_token_ids": True}
    response = await engine.client.post("/v1/completions", json=body)
    assert response.is_success, response.text
    logprobs = response.json()["choices"][0]["logprobs"]
    ids = [int(token.removeprefix("token_id:")) for token in logprobs["tokens"]]
    return {"ids": ids, "logprobs": logprobs["token_logprobs"]}


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
async def test_adapters_that_take_turns_agree_with_transformers_at_every_position(
    engine: Engine,
    prompts: list[list[int]],
    by_turns: Callable[[list[int], int], Tensor],
):
    """Among sums and the base, while sequences of different lengths are at different positions."""
    rows = [(period, prompt) for prompt in prompts for period in PERIODS] * 2  # then from the cache
    others = [served(engine, model, prompts[0]) for model in ("slim", "slim+*@two")]
    answers, *_ = await asyncio.gather(
        asyncio.gather(*(generated(engine, f"slim+*@turns{p}", ids, 8) for p, ids in rows)),
        *others,
    )
    for (period, prompt), answer in zip(rows, answers, strict=True):
        expected = by_turns(prompt + answer["ids"], period)[len(prompt) - 1 : -1]
        for token, value, logprobs in zip(answer["ids"], answer["logprobs"], expected, strict=True):
            assert value == pytest.approx(logprobs[token].item(), abs=1e-4), period
    longest = max(prompts, key=len)
    first, second = (by_turns(longest, period)[-1] for period in PERIODS)
    assert (first - second).abs().max() > 1e-2  # a mix-up would show


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
