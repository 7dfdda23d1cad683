"""Cut, exported and loaded into vLLM: the tokens of transformers, and their probabilities.

A uniform export needs no plugin; a per-layer export needs the plugin and nothing else of ours.
"""

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

from pruning.evaluation import load
from pruning.geometry import Geometry
from pruning.pipeline import STAGES
from pruning.recipe import PruneSpec, Recipe

pytestmark = pytest.mark.engine

NUM_TOKENS = 24
VLLM = """
import json, sys
from vllm import LLM, ModelRegistry, SamplingParams

model, prompts, num_tokens = json.load(sys.stdin)
llm = LLM(model, dtype="float32", enforce_eager=True, kv_cache_memory_bytes=1 << 26)
greedy = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, logprobs=0)
found = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], greedy)
answers = [answer.outputs[0] for answer in found]
print(json.dumps({
    "tokens": [list(answer.token_ids) for answer in answers],
    "logprobs": [[p[t].logprob for t, p in zip(a.token_ids, a.logprobs)] for a in answers],
    "ours": [name for name in ModelRegistry.get_supported_archs() if name.startswith("Slim")],
}))
"""
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "original_max_position_embeddings": 256,
    "initializer_range": 0.15,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "sliding_window": None,
}
OWN: dict[str, dict[str, Any]] = {  # what of a family only shows when it is far from its default
    "gemma2": {
        "sliding_window": 16,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    }
}
HEADS = ["ffn_channel", "kv_group", "query_head"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes: transformers reads the tokenizer of any qwen2 as a byte-level one, whatever it is."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_ = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=bytes_)


@pytest.fixture
def export(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[..., Path]:
    """Cut half of a random base of a family by a recipe."""

    def make(family: str, **recipe: Any) -> Path:
        shape = {**SHAPE, **OWN.get(family, {})}
        config = AutoConfig.for_model(family, vocab_size=512, **shape)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter)
            elif parameter.dim() == 1:
                parameter.data += 0.3 * torch.randn_like(parameter)
        model.save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        (tmp_path / "text").write_text(" ".join(str(i * i) for i in range(400)))
        text = {"file": "text", "sequences": 8, "length": 64}
        asked = {"name": "half", "base": "base", "target": 0.5, **recipe}
        spec = PruneSpec(
            recipe=Recipe.model_validate(asked | {"calibration": text, "evaluation": text}),
            base=tmp_path / "base",
            adapters={},
            calibration=tmp_path / "text",
            evaluation=tmp_path / "text",
        )
        for stage in ("calibrate", "plan", "slice"):
            STAGES[stage](spec, tmp_path, lambda fraction, message: None)
        return tmp_path / "slice" / "model"

    return make


def served(model: Path, prompts: list[list[int]], plugins: str = "") -> dict[str, Any]:
    """What vLLM generates, greedily, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", VLLM],
        input=json.dumps([str(model), prompts, NUM_TOKENS]),
        env={**os.environ, **ENVIRONMENT, "VLLM_PLUGINS": plugins},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.strip().split("\n")[-1])
    return found


@torch.inference_mode()
def assert_same(found: dict[str, Any], model: Path, prompts: list[list[int]]) -> None:
    """Hold what vLLM generated against transformers, one prompt at a time."""
    reference = load(model)
    for prompt, tokens, logprobs in zip(prompts, found["tokens"], found["logprobs"], strict=True):
        ids_1T = torch.tensor([prompt + tokens[:-1]], device=reference.device)
        logits_TV = reference(input_ids=ids_1T).logits[0, len(prompt) - 1 :].cpu()
        best = logits_TV.log_softmax(dim=-1).max(dim=-1)
        assert best.indices.tolist() == tokens
        assert best.values.tolist() == pytest.approx(logprobs, abs=1e-3)


@pytest.mark.parametrize(
    ("family", "recipe", "architecture"),
    [
        ("llama", {}, "LlamaForCausalLM"),
        (
            "llama",
            {"bias_compensation": True, "units": HEADS, "hidden_size": 192},
            "LlamaForCausalLM",
        ),
        pytest.param(
            "qwen2", {"bias_compensation": True}, "LlamaForCausalLM", marks=pytest.mark.slow
        ),
        pytest.param("qwen3", {"units": HEADS}, "Qwen3ForCausalLM", marks=pytest.mark.slow),
        pytest.param(
            "mistral", {"bias_compensation": True}, "LlamaForCausalLM", marks=pytest.mark.slow
        ),
        pytest.param(
            "gemma2",
            {"units": HEADS, "hidden_size": 192},
            "Gemma2ForCausalLM",
            marks=pytest.mark.slow,
        ),
        pytest.param("phi3", {"units": HEADS}, "Phi3ForCausalLM", marks=pytest.mark.slow),
    ],
)
def test_a_uniform_export_needs_nothing_of_ours_in_vllm(
    family: str,
    recipe: dict[str, Any],
    architecture: str,
    export: Callable[..., Path],
    prompts: list[list[int]],
):
    model = export(family, export="uniform", **recipe)
    config = json.loads((model / "config.json").read_text())
    assert config["architectures"] == [architecture]
    assert config["num_attention_heads"] < 16
    if recipe.get("bias_compensation"):
        assert config["attention_bias"]
        assert config["mlp_bias"]
    found = served(model, prompts)
    assert not found["ours"]
    assert_same(found, model, prompts)


@pytest.mark.parametrize(
    "family",
    ["llama", *(pytest.param(f, marks=pytest.mark.slow) for f in ("mistral", "qwen2", "qwen3"))],
)
def test_query_heads_leave_layers_of_different_widths(
    family: str, export: Callable[..., Path], prompts: list[list[int]]
):
    recipe = {"units": HEADS, "allocator": {"name": "global"}, "bias_compensation": True}
    model = export(family, export="per_layer", **recipe)
    layers = Geometry.of(model).layers
    assert {layer.group_size for layer in layers} < {1, 2, 3}
    assert len(set(layers)) > 1
    assert_same(served(model, prompts, plugins="graftwork"), model, prompts)
