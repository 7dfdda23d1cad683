"""Uniform exports in stock vLLM: no plugin of ours, and the tokens of transformers."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from pruning.pipeline import STAGES
from pruning.recipe import PruneSpec, Recipe

pytestmark = pytest.mark.engine

STOCK = """
import json, sys
from vllm import LLM, ModelRegistry, SamplingParams

assert not [name for name in ModelRegistry.get_supported_archs() if name.startswith("Slim")]
model, prompts, num_tokens = json.load(sys.stdin)
llm = LLM(model, dtype="float32", enforce_eager=True, kv_cache_memory_bytes=1 << 26)
greedy = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
answers = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], greedy)
print(json.dumps([list(answer.outputs[0].token_ids) for answer in answers]))
"""
ENVIRONMENT = {
    "VLLM_PLUGINS": "",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes: transformers reads the tokenizer of any qwen2 as a byte-level one, whatever it is."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_ = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=bytes_)


@pytest.fixture
def export(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[[str, bool], Path]:
    """Cut half of a random base of a family, with or without the bias that makes up for it."""

    def make(family: str, bias: bool) -> Path:
        config = AutoConfig.for_model(
            family,
            vocab_size=512,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=32,
            max_position_embeddings=256,
            initializer_range=0.15,
            bos_token_id=None,
            eos_token_id=None,
            sliding_window=None,
        )
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter)
        model.save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        (tmp_path / "text").write_text(" ".join(str(i * i) for i in range(400)))
        asked = Recipe.model_validate(
            {
                "name": "half",
                "base": "base",
                "target": 0.5,
                "bias_compensation": bias,
                "export": "uniform",
                "calibration": {"file": "text", "sequences": 8, "length": 64},
                "evaluation": {"file": "text", "sequences": 8, "length": 64},
            }
        )
        spec = PruneSpec(
            recipe=asked,
            base=tmp_path / "base",
            adapters={},
            calibration=tmp_path / "text",
            evaluation=tmp_path / "text",
        )
        for stage in ("calibrate", "plan", "slice"):
            STAGES[stage](spec, tmp_path, lambda fraction, message: None)
        return tmp_path / "slice" / "model"

    return make


def served_by_stock(model: Path, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    """What vLLM without plugins generates, greedily, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", STOCK],
        input=json.dumps([str(model), prompts, num_tokens]),
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    tokens: list[list[int]] = json.loads(done.stdout.strip().split("\n")[-1])
    return tokens


@pytest.mark.parametrize(
    ("family", "bias", "served"),
    [
        ("llama", False, "LlamaForCausalLM"),
        ("llama", True, "LlamaForCausalLM"),
        pytest.param("qwen2", True, "LlamaForCausalLM", marks=pytest.mark.slow),
        pytest.param("qwen3", False, "Qwen3ForCausalLM", marks=pytest.mark.slow),
        pytest.param("mistral", True, "LlamaForCausalLM", marks=pytest.mark.slow),
    ],
)
def test_a_uniform_export_needs_nothing_of_ours_in_vllm(
    family: str,
    bias: bool,
    served: str,
    export: Callable[[str, bool], Path],
    prompts: list[list[int]],
    greedy: Any,
):
    model = export(family, bias)
    config = json.loads((model / "config.json").read_text())
    assert config["architectures"] == [served]
    assert config["num_key_value_heads"] == 2
    if bias:
        assert config["attention_bias"]
        assert config["mlp_bias"]
    expected = greedy(model, None, prompts)
    assert served_by_stock(model, prompts, len(expected[0])) == expected
