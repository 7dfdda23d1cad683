"""Adapters in an engine: loaded only if they fit exactly, and really gone once unloaded."""

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from service.engines import Engine, Engines
from service.errors import AdapterRejected

pytestmark = pytest.mark.engine
shared_loop = pytest.mark.asyncio(loop_scope="session")

Complete = Callable[[Engine, str, list[int]], Awaitable[list[int]]]
PREFIX = "base_model.model.model.layers"
UP_A, UP_B = (f"{PREFIX}.3.mlp.up_proj.lora_{x}.weight" for x in "AB")
GONE_A, GONE_B = (f"{PREFIX}.0.self_attn.q_proj.lora_{x}.weight" for x in "AB")
DEEP_A, DEEP_B = (f"{PREFIX}.6.mlp.up_proj.lora_{x}.weight" for x in "AB")


@pytest_asyncio.fixture(loop_scope="session")
async def engine(engines: Engines) -> Engine:
    return engines.get("slim")


def with_value(tensors: dict[str, Tensor], value: float) -> dict[str, Tensor]:
    spoilt = tensors[UP_B].clone()
    spoilt[0, 0] = value
    return {**tensors, UP_B: spoilt}


WRONG_TENSORS = {
    "NaN": (lambda t: with_value(t, float("nan")), "up_proj: not all values are finite"),
    "infinity": (lambda t: with_value(t, float("inf")), "not all values are finite"),
    "too narrow": (lambda t: {**t, UP_B: t[UP_B][:-1].clone()}, "the model needs"),
    "of another rank": (
        lambda t: {**t, UP_A: t[UP_A][:4].clone(), UP_B: t[UP_B][:, :4].clone()},
        "the model needs",
    ),
    "without B": (lambda t: {k: v for k, v in t.items() if k != UP_B}, "lora_B is missing"),
    "for a block pruned away": (
        lambda t: {**t, GONE_A: torch.ones(8, 128), GONE_B: torch.ones(256, 8)},
        "the block was pruned away",
    ),
    "for a layer too many": (
        lambda t: {**t, DEEP_A: t[UP_A].clone(), DEEP_B: t[UP_B].clone()},
        "layers.6.mlp.up_proj: the model has no such module",
    ),
    "for an unknown module": (
        lambda t: {**t, UP_A.replace("up_proj", "side_proj"): t[UP_A].clone()},
        "side_proj",
    ),
    "of a whole embedding": (
        lambda t: {
            **t,
            "base_model.model.model.embed_tokens.base_layer.weight": torch.ones(512, 128),
        },
        "do not pair up",
    ),
}
WRONG_CONFIG = {
    "DoRA": ({"use_dora": True}, "DoRA"),
    "biases": ({"lora_bias": True}, "bias"),
    "other modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "pissa"),
    "a rank too high": ({"r": 32}, "greater than max_lora_rank"),
    "no rank": ({"r": None}, "NoneType"),
}


async def assert_refused(engine: Engine, path: Path, reason: str) -> None:
    before = await engine.residency()
    with pytest.raises(AdapterRejected, match=reason):
        await engine.ensure_adapter("slim+bad@1", path)
    assert await engine.residency() == before
    assert before["unnamed"] == 0


@pytest.fixture
def copy(adapters: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a good adapter, to be spoilt."""
    return Path(shutil.copytree(adapters["all"], tmp_path / "copy"))


@pytest.mark.parametrize("case", WRONG_TENSORS)
@shared_loop
async def test_tensors_that_do_not_fit_are_refused_without_trace(
    case: str, engine: Engine, copy: Path
):
    change, reason = WRONG_TENSORS[case]
    weights = copy / "adapter_model.safetensors"
    save_file(change(load_file(weights)), weights)
    await assert_refused(engine, copy, reason)


@pytest.mark.parametrize("case", WRONG_CONFIG)
@shared_loop
async def test_configs_that_vllm_does_not_serve_are_refused_without_trace(
    case: str, engine: Engine, copy: Path
):
    change, reason = WRONG_CONFIG[case]
    config = copy / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    await assert_refused(engine, copy, reason)


@shared_loop
async def test_a_pickle_is_refused_without_being_opened(engine: Engine, copy: Path):
    weights = copy / "adapter_model.safetensors"
    torch.save(load_file(weights), copy / "adapter_model.bin")
    weights.unlink()
    await assert_refused(engine, copy, "there is no adapter_model.safetensors")


@shared_loop
async def test_a_file_that_was_cut_short_is_refused(engine: Engine, copy: Path):
    weights = copy / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    await assert_refused(engine, copy, "incomplete metadata")


@shared_loop
async def test_weights_without_their_config_are_refused(engine: Engine, copy: Path):
    (copy / "adapter_config.json").unlink()
    await assert_refused(engine, copy, "No adapter found")


@shared_loop
async def test_a_refused_name_can_be_loaded_once_it_is_right(
    engine: Engine, adapters: dict[str, Path], tmp_path: Path
):
    with pytest.raises(AdapterRejected):
        await engine.ensure_adapter("slim+late@1", tmp_path / "nothing")
    await asyncio.gather(*(engine.ensure_adapter("slim+late@1", adapters["all"]) for _ in range(5)))
    await engine.unload_adapter("slim+late@1")


@shared_loop
async def test_unloading_frees_the_memory_and_the_name(
    engine: Engine, adapters: dict[str, Path], prompts: list[list[int]], complete: Complete
):
    await engine.ensure_adapter("slim+gone@1", adapters["all"])
    tokens = await complete(engine, "slim+gone@1", prompts[3])
    before = await engine.residency()
    await engine.unload_adapter("slim+gone@1")
    after = await engine.residency()
    assert {a["name"] for a in before["adapters"]} - {a["name"] for a in after["adapters"]} == {
        "slim+gone@1"
    }
    assert after["unnamed"] == 0
    body = {"model": "slim+gone@1", "prompt": prompts[3]}
    assert (await engine.client.post("/v1/completions", json=body)).status_code == 404
    await engine.ensure_adapter("slim+gone@1", adapters["all"])
    assert await complete(engine, "slim+gone@1", prompts[3]) == tokens
    await engine.unload_adapter("slim+gone@1")


@shared_loop
async def test_unloading_lets_a_running_request_finish(engine: Engine, adapters: dict[str, Path]):
    await engine.ensure_adapter("slim+busy@1", adapters["all"])
    body = {"model": "slim+busy@1", "prompt": [1, 2, 3], "max_tokens": 200, "ignore_eos": True}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    async with engine.client.stream("POST", "/v1/completions", json=body) as answer:
        lines = (line.removeprefix("data: ") async for line in answer.aiter_lines() if line)
        await anext(lines)  # it runs, and has nearly all of its tokens still to come
        unloading = asyncio.create_task(engine.unload_adapter("slim+busy@1"))
        *_, usage, done = [line async for line in lines]
    await unloading
    assert done == "[DONE]"
    assert json.loads(usage)["usage"]["completion_tokens"] == 200
    assert (await engine.residency())["unnamed"] == 0


@shared_loop
async def test_adapters_beyond_the_memory_are_evicted_and_come_back_when_asked_for(
    engine: Engine, adapters: dict[str, Path], prompts: list[list[int]], complete: Complete
):
    names = [f"slim+many{i}@1" for i in range(10)]  # the engine holds 8
    for name in names:
        await engine.ensure_adapter(name, adapters["all"])
    resident = {a["name"]: a["resident"] for a in (await engine.residency())["adapters"]}
    assert not resident[names[0]]
    assert resident[names[-1]]
    assert sum(resident.values()) == 8
    first, last = await asyncio.gather(
        complete(engine, names[0], prompts[4]), complete(engine, names[-1], prompts[4])
    )
    assert first == last
    for name in names:
        await engine.unload_adapter(name)
    assert (await engine.residency())["unnamed"] == 0
