"""Slim models of every family: as stock where layers are equal, and whole where they differ."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from pruning.architectures import ARCHITECTURES
from pruning.architectures.llama import LINEARS
from pruning.geometry import Geometry
from pruning.models.configuration import SlimLlamaConfig
from pruning.models.modeling import register

FAMILIES = [a.family for a in ARCHITECTURES.values() if not a.uniform_only]
SHAPE: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
}
DIFFERENT: dict[int, dict[str, Any]] = {
    0: {"skip": ["self_attn"], "intermediate_size": 80},
    1: {"num_attention_heads": 2, "num_key_value_heads": 1, "o_proj_bias": True},
    2: {"skip": ["mlp"]},
    3: {"intermediate_size": 32, "down_proj_bias": True},
}


@pytest.fixture(autouse=True)
def _registered() -> None:
    register()
    register()  # vLLM and users may both ask for it


def build(model_type: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **SHAPE, **changes)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)  # zeros would hide a bias that is not used
    return model


def tokens(count: int = 9) -> Tensor:
    return torch.randint(0, SHAPE["vocab_size"], (2, count), generator=torch.manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_with_equal_layers_it_computes_what_the_stock_model_computes(family: str):
    stock = build(family)
    slim = build(f"slim_{family}", per_layer_config={})
    slim.load_state_dict(stock.state_dict(), strict=True)
    assert torch.equal(slim(tokens()).logits, stock(tokens()).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_that_is_skipped_is_worth_a_block_that_adds_nothing(family: str):
    stock = build(family)
    slim = build(
        f"slim_{family}", per_layer_config={0: {"skip": ["self_attn"]}, 2: {"skip": ["mlp"]}}
    )
    slim.load_state_dict(stock.state_dict(), strict=False)
    torch.nn.init.zeros_(stock.model.layers[0].self_attn.o_proj.weight)
    torch.nn.init.zeros_(stock.model.layers[2].mlp.down_proj.weight)
    torch.testing.assert_close(slim(tokens()).logits, stock(tokens()).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_its_linears_have_the_shapes_that_its_geometry_foretells(family: str):
    model = build(f"slim_{family}", per_layer_config=DIFFERENT, tie_word_embeddings=True)
    geometry = Geometry.from_config(model.config.to_dict())
    for i, layer in enumerate(model.model.layers):
        modules = dict(layer.named_modules())
        for linear in LINEARS:
            module = modules.get(f"self_attn.{linear}") or modules.get(f"mlp.{linear}")
            shape = tuple(module.weight.shape) if module else None
            assert shape == geometry.linear_shape(i, linear)
    assert geometry.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_with_a_cache_equals_generation_without(family: str, num_beams: int):
    model = build(f"slim_{family}", per_layer_config=DIFFERENT)
    cached, plain = (
        model.generate(tokens(), max_new_tokens=16, num_beams=num_beams, use_cache=use_cache)
        for use_cache in (True, False)
    )
    assert torch.equal(cached, plain)
    assert len(set(cached[0].tolist())) > 5


@pytest.mark.parametrize("family", FAMILIES)
def test_it_comes_back_from_disk_as_it_was(family: str, tmp_path: Path):
    model = build(f"slim_{family}", per_layer_config=DIFFERENT)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is type(model)
    assert again.config.architectures == [type(model).__name__]
    assert torch.equal(again(tokens()).logits, model(tokens()).logits)


def test_ten_layers_and_more_keep_their_overrides_on_disk(tmp_path: Path):
    deep = {**SHAPE, "num_hidden_layers": 11}
    overrides = {1: {"intermediate_size": 48}, 10: {"intermediate_size": 32}}
    SlimLlamaConfig(**deep, per_layer_config=overrides).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    geometry = Geometry.from_config(config.to_dict())
    assert [geometry.layers[i].intermediate_size for i in (0, 1, 10)] == [96, 48, 32]


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_adapts_and_reloads_all_seven_linears(family: str, tmp_path: Path):
    model = build(f"slim_{family}", per_layer_config=DIFFERENT)
    plain = model(tokens()).logits
    lora = LoraConfig(r=4, target_modules=list(LINEARS), init_lora_weights=False)
    adapted = get_peft_model(model, lora).eval()
    expected = adapted(tokens()).logits
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(build(f"slim_{family}", per_layer_config=DIFFERENT), tmp_path)
    adapted_names = {n.rpartition(".")[2] for n, m in again.named_modules() if hasattr(m, "lora_A")}
    assert adapted_names == set(LINEARS)
    assert torch.equal(again(tokens()).logits, expected)
    assert not torch.allclose(expected, plain)


def test_gradients_reach_every_parameter_also_with_checkpointing():
    model = build("slim_qwen3", per_layer_config=DIFFERENT).train()
    model.gradient_checkpointing_enable()
    model(tokens(), labels=tokens()).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_attention_can_be_switched_and_recorded_after_loading():
    model = build("slim_llama", per_layer_config=DIFFERENT)
    expected = model(tokens()).logits
    model.set_attn_implementation("eager")
    output = model(tokens(), output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(output.logits, expected)
    assert len(output.attentions) == 3
    assert len(output.hidden_states) == 5
    assert all(not torch.equal(a, b) for a, b in pairwise(output.hidden_states))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"num_attention_heads": 3}, "3 heads cannot share 2 KV heads"),
        ({"skip": ["attention"]}, "unknown block 'attention'"),
    ],
)
def test_a_layer_that_cannot_be_built_is_refused(override: dict[str, Any], message: str):
    with pytest.raises(Exception, match=message):
        SlimLlamaConfig(**SHAPE, per_layer_config={1: override})
