"""A served slim model says exactly what transformers says, alone and in mixed batches."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from pruning.architectures.llama import LINEARS
from service.engines import Engine, Engines
from service.settings import Settings

pytestmark = pytest.mark.engine
shared_loop = pytest.mark.asyncio(loop_scope="session")

Complete = Callable[[Engine, str, list[int]], Awaitable[list[int]]]
Greedy = Callable[[Path, Path | None, list[list[int]]], list[list[int]]]


@pytest.fixture(scope="module")
def expected(
    slim: Path, adapters: dict[str, Path], prompts: list[list[int]], greedy: Greedy
) -> dict[str, list[list[int]]]:
    """Tokens of transformers, by model id in the engine."""
    models: dict[str, Path | None] = {"slim": None}
    models |= {f"slim+{name}@1": path for name, path in adapters.items()}
    return {model: greedy(slim, adapter, prompts) for model, adapter in models.items()}


@pytest_asyncio.fixture(loop_scope="session")
async def engine(engines: Engines, adapters: dict[str, Path]) -> Engine:
    engine = engines.get("slim")
    for name, path in adapters.items():
        await engine.ensure_adapter(f"slim+{name}@1", path)
    return engine


def test_the_references_differ_so_that_a_mix_up_would_show(
    expected: dict[str, list[list[int]]], prompts: list[list[int]]
):
    for i in range(len(prompts)):
        assert len({tuple(tokens[i]) for tokens in expected.values()}) == len(expected)


@shared_loop
async def test_every_model_alone_generates_the_tokens_of_transformers(
    engine: Engine,
    expected: dict[str, list[list[int]]],
    prompts: list[list[int]],
    complete: Complete,
):
    for model, tokens in expected.items():
        for prompt, reference in zip(prompts, tokens, strict=True):
            assert await complete(engine, model, prompt) == reference, model


@shared_loop
async def test_one_batch_that_mixes_the_base_and_all_adapters_has_no_mismatch(
    engine: Engine,
    expected: dict[str, list[list[int]]],
    prompts: list[list[int]],
    complete: Complete,
):
    rows = [(model, i) for i in range(len(prompts)) for model in expected]
    answers = await asyncio.gather(*(complete(engine, m, prompts[i]) for m, i in rows))
    mismatches = [
        (m, i) for (m, i), tokens in zip(rows, answers, strict=True) if tokens != expected[m][i]
    ]
    assert mismatches == []


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
@pytest.mark.slow
@shared_loop
async def test_the_other_families_generate_the_tokens_of_transformers_too(
    family: str,
    make_slim: Callable[..., Path],
    make_adapter: Callable[..., Path],
    make_settings: Callable[[], Settings],
    until: Callable[..., Awaitable[None]],
    prompts: list[list[int]],
    greedy: Greedy,
    complete: Complete,
):
    model = make_slim(family)
    adapter = make_adapter(model, r=8, target_modules=list(LINEARS))
    engines = Engines(make_settings())
    try:
        await engines.reconcile({"slim": model})
        await until(lambda: engines.ready("slim"), 300)
        engine = engines.get("slim")
        await engine.ensure_adapter("slim+all@1", adapter)
        for name, path in {"slim": None, "slim+all@1": adapter}.items():
            expected = greedy(model, path, prompts)
            answers = await asyncio.gather(*(complete(engine, name, p) for p in prompts))
            assert answers == expected, name
    finally:
        await engines.stop()
