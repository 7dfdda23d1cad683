"""What merges, compressions and trainings write says in the engine what it says in PEFT."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from peft import PeftModel
from torch import Tensor

from pruning import evaluation, methods, registry
from pruning.adapters import algebra, atoms
from pruning.adapters.algebra import Bags
from pruning.adapters.compression import Deltas, applied
from pruning.adapters.inputs import deltas_of
from pruning.adapters.merging import merge_all
from pruning.adapters.quality import silent
from pruning.adapters.source import Source, open_source
from pruning.adapters.train import job
from pruning.adapters.train.loop import Lesson, fit
from pruning.adapters.train.recipes import TrainRecipe
from pruning.adapters.train.tuned import Around
from pruning.geometry import Geometry
from pruning.recipe import Method
from service.engines import Engine, Engines

pytestmark = pytest.mark.engine
shared_loop = pytest.mark.asyncio(loop_scope="session")

NUM_TOKENS = 8
WEIGHTS = {"all": 0.7, "patterns": 0.5}  # 16 atoms at most, the limit of the engine


@pytest_asyncio.fixture(loop_scope="session")
async def engine(engines: Engines) -> Engine:
    return engines.get("slim")


@pytest.fixture(scope="module")
def sources(slim: Path, adapters: dict[str, Path]) -> list[Source]:
    return [open_source(name, adapters[name], Geometry.of(slim)) for name in WEIGHTS]


@pytest.fixture
def written(slim: Path, tmp_path: Path) -> Callable[[Bags], Path]:
    def write(bags: Bags) -> Path:
        atoms.write(algebra.adapter_of(bags), tmp_path / "made", Geometry.of(slim), "slim")
        return tmp_path / "made"

    return write


async def assert_same_in_both(
    engine: Engine, base: Path, adapter: Path, prompts: list[list[int]]
) -> None:
    """Greedy tokens and their log probabilities, against PEFT in float32."""
    model = PeftModel.from_pretrained(evaluation.load(base), adapter).eval()
    await engine.ensure_adapter("slim+made@1", adapter)
    try:
        for prompt in prompts:
            body: dict[str, Any] = {"model": "slim+made@1", "prompt": prompt, "logprobs": 1}
            body |= {"max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True}
            response = await engine.client.post(
                "/v1/completions", json=body | {"return_token_ids": True}
            )
            assert response.is_success, response.text
            choice = response.json()["choices"][0]
            found, ids = choice["logprobs"]["token_logprobs"], choice["token_ids"]
            wanted = next_log_probabilities(model, prompt + ids, len(prompt))
            assert ids == wanted.argmax(dim=1).tolist()
            assert torch.allclose(torch.tensor(found), wanted.max(dim=1).values, atol=2e-3)
    finally:
        await engine.unload_adapter("slim+made@1")


def next_log_probabilities(model: Any, ids: list[int], start: int) -> Tensor:
    """Of every token, after each of those before the ones from `start`."""
    with torch.inference_mode():
        ids_1T = torch.tensor([ids], device=model.device)
        logits: Tensor = model(ids_1T, use_cache=False).logits[0].cpu()
    return logits[start - 1 : -1].log_softmax(dim=1)


@pytest.mark.parametrize("name", methods.names("merge"))
@shared_loop
async def test_a_merged_adapter_is_the_same_in_the_engine_and_in_peft(
    name: str,
    engine: Engine,
    slim: Path,
    sources: list[Source],
    written: Callable[[Bags], Path],
    prompts: list[list[int]],
):
    merge, _, params = registry.merge(Method(name=name))
    merged = {key: m.bag for key, m, _ in merge_all(sources, WEIGHTS, merge, params, 0)}
    await assert_same_in_both(engine, slim, written(merged), prompts[2:6])


@pytest.mark.parametrize(
    ("name", "params"),
    [("svd", {"energy": 0.8}), ("darex", {"drop": 0.5}), ("dylora", {"ranks": [3]})],
)
@shared_loop
async def test_a_compressed_adapter_is_the_same_in_the_engine_and_in_peft(
    name: str,
    params: Mapping[str, Any],
    engine: Engine,
    slim: Path,
    sources: list[Source],
    written: Callable[[Bags], Path],
    prompts: list[list[int]],
):
    base, source = evaluation.load(slim), sources[0]

    def probe(deltas: Deltas) -> Tensor:
        with applied(base, deltas), torch.inference_mode():
            ids_1T = torch.tensor([prompts[5]], device=base.device)
            return base(ids_1T, use_cache=False).logits[0].cpu()

    compress, _, checked = registry.compress(Method(name=name, params=dict(params)))
    bags = {key: source.bag(key) for key in source.places}
    (made,) = compress(bags, checked, 0, probe).values()
    await assert_same_in_both(engine, slim, written(made), prompts[2:6])


@pytest.mark.parametrize(
    "method",
    [
        {"form": {"name": "gated"}},
        {"form": {"name": "nola"}},
        {"init": {"name": "lora_ga"}, "hooks": [{"name": "allora"}]},
        {"init": {"name": "loldu"}, "form": {"name": "diagonal"}},
    ],
    ids=["gated", "nola", "lora_ga", "loldu"],
)
@shared_loop
async def test_a_trained_adapter_is_the_same_in_the_engine_and_in_peft(
    method: Mapping[str, Any],
    engine: Engine,
    slim: Path,
    written: Callable[[Bags], Path],
    prompts: list[list[int]],
    tmp_path: Path,
):
    asked = {"name": "made", "base": "slim", "training": {"file": "rows"}, "rank": 4}
    hyper = {"steps": 6, "batch_size": 4, "learning_rate": 0.05, "checks": 1}
    recipe = TrainRecipe.model_validate({**asked, "hyperparameters": hyper, **method})
    rows, geometry = [(prompt, 1) for prompt in prompts if len(prompt) > 1], Geometry.of(slim)
    model = evaluation.load(slim)
    starts = job.starts(model, recipe, job.keys_of(recipe, geometry), rows)
    tuned, around = job.attach(model, recipe, starts, 6)
    last = Around()
    last.keeps_last = True  # random weights need not have a better loss
    lesson = Lesson(rows, rows[:2])
    fit(tuned, [*around, last], lesson, recipe.hyperparameters, 0, tmp_path, silent)
    bags, base = tuned.bake(), evaluation.load(slim)
    before = next_log_probabilities(base, prompts[5], 1)
    with applied(base, deltas_of(bags)):
        after = next_log_probabilities(base, prompts[5], 1)
    assert (after - before).abs().max() > 0.1
    await assert_same_in_both(engine, slim, written(bags), prompts[2:6])
