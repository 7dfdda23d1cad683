"""A slim model with every irregularity, adapters for it, and engines that serve it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from pruning.architectures.llama import LINEARS
from pruning.models.modeling import register
from service.engines import Engine, Engines
from service.settings import Settings

VOCABULARY = 512
NUM_TOKENS = 24
LAYERS: dict[int, dict[str, Any]] = {
    0: {"skip": ["self_attn"]},
    1: {"num_attention_heads": 4, "num_key_value_heads": 2, "o_proj_bias": True},
    2: {"skip": ["mlp"]},
    3: {"num_attention_heads": 4, "intermediate_size": 128, "down_proj_bias": True},
    4: {"num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 192},
}
ADAPTERS: dict[str, dict[str, Any]] = {
    "all": {"r": 8, "target_modules": list(LINEARS)},
    "attention": {"r": 4, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    "mlp": {"r": 16, "target_modules": ["gate_proj", "up_proj", "down_proj"], "use_rslora": True},
    "patterns": {
        "r": 8,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "rank_pattern": {"down_proj": 2},
        "alpha_pattern": {"q_proj": 32},
    },
}


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Token i is the word t<i>."""
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCABULARY)}, "t0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words)


@pytest.fixture(scope="session")
def make_slim(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> Callable[..., Path]:
    """Make a slim model of a family, with random weights and a tokenizer, in a directory."""
    register()

    def make(family: str) -> Path:
        config = AutoConfig.for_model(
            f"slim_{family}",
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=32,
            max_position_embeddings=256,
            initializer_range=0.15,
            bos_token_id=None,
            eos_token_id=None,
            tie_word_embeddings=True,
            per_layer_config=LAYERS,
        )
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter)
        directory = tmp_path_factory.mktemp(family)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        return directory

    return make


@pytest.fixture(scope="session")
def slim(make_slim: Callable[..., Path]) -> Path:
    return make_slim("llama")


@pytest.fixture(scope="session")
def make_adapter(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a random adapter of a model, strong enough to change its tokens."""

    def make(model: Path, seed: int = 0, **config: Any) -> Path:
        base = AutoModelForCausalLM.from_pretrained(model)
        torch.manual_seed(seed)
        adapted = get_peft_model(base, LoraConfig(init_lora_weights=False, **config))
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.15)
        directory = tmp_path_factory.mktemp("adapter")
        adapted.save_pretrained(directory)
        return directory

    return make


@pytest.fixture(scope="session")
def adapters(slim: Path, make_adapter: Callable[..., Path]) -> dict[str, Path]:
    return {
        name: make_adapter(slim, seed, **config)
        for seed, (name, config) in enumerate(ADAPTERS.items())
    }


@pytest.fixture(scope="session")
def make_settings(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Settings]:
    """Make settings with a home of its own and engines small enough for any machine."""

    def make() -> Settings:
        return Settings(
            home=tmp_path_factory.mktemp("home"),
            engine_max_loras=len(ADAPTERS),  # no slot stays empty, so that a wrong one shows
            engine_max_lora_rank=16,
            engine_max_cpu_loras=8,
            engine_kv_cache_bytes=1 << 26,
        )

    return make


@pytest.fixture(scope="session")
def until() -> Callable[..., Awaitable[None]]:
    """Wait until a condition holds; fail when it does not in time."""

    async def wait(condition: Callable[[], bool], seconds: float) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.05)

    return wait


@pytest.fixture(scope="session")
def other() -> str:
    """The name of the second engine: so long that its socket must lie elsewhere."""
    return "other" + "-x" * 29


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engines(
    slim: Path,
    other: str,
    make_settings: Callable[[], Settings],
    until: Callable[..., Awaitable[None]],
) -> AsyncIterator[Engines]:
    """Two engines that serve the same model, under two names."""
    engines = Engines(make_settings())
    await engines.reconcile({"slim": slim, other: slim})
    await until(lambda: engines.ready("slim") and engines.ready(other), 300)
    yield engines
    await engines.stop()


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Eight prompts of different lengths, as tokens."""
    generator = torch.manual_seed(2)
    return [
        torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()
        for length in (1, 3, 7, 16, 17, 33, 64, 100)
    ]


@pytest.fixture(scope="session")
def greedy() -> Callable[..., list[list[int]]]:
    """What transformers generates, greedily and in float32, alone for each prompt."""

    def generate(model: Path, adapter: Path | None, prompts: list[list[int]]) -> list[list[int]]:
        reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        if adapter is not None:
            reference = PeftModel.from_pretrained(reference, adapter)
        return [
            reference.generate(input_ids=torch.tensor([prompt]), max_new_tokens=NUM_TOKENS)[
                0, len(prompt) :
            ].tolist()
            for prompt in prompts
        ]

    return generate


@pytest.fixture(scope="session")
def complete() -> Callable[..., Awaitable[list[int]]]:
    """What an engine generates, greedily."""

    async def complete(engine: Engine, model: str, prompt: list[int]) -> list[int]:
        body = {"model": model, "prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0}
        response = await engine.client.post(
            "/v1/completions", json={**body, "ignore_eos": True, "return_token_ids": True}
        )
        assert response.is_success, response.text
        tokens: list[int] = response.json()["choices"][0]["token_ids"]
        return tokens

    return complete
