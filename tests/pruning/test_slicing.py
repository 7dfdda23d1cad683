"""A slim base computes what its dense base computes with the same units silenced."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from pruning.errors import InvalidInput
from pruning.evaluation import load
from pruning.export import slim_config
from pruning.geometry import Geometry
from pruning.plan import LayerPlan, Plan
from pruning.slicing import slice_base
from pruning.stats import Statistics
from pruning.weights.checkpoint import Checkpoint
from pruning.weights.header import read_header

DENSE_NAMES = ("llama", "mistral", "qwen2", "qwen3", "llama with biases", "mistral without window")
Means = Callable[[int, int], Statistics]


def silenced(base: Path, plan: Plan, statistics: Statistics) -> Any:
    """The dense model in which units outside of `plan` write nothing, or their mean."""
    model = load(base)
    for index, (layer, kept) in enumerate(zip(model.model.layers, plan.layers, strict=True)):
        attention, mlp = layer.self_attn, layer.mlp
        channels = attention.o_proj.in_features // 4  # of each KV group
        heads = [g * channels + c for g in kept.kv_groups for c in range(channels)]
        for name, linear, units in (
            ("o_proj", attention.o_proj, heads),
            ("down_proj", mlp.down_proj, list(kept.ffn_channels)),
        ):
            mean = statistics.moments[index, name].mean_C if plan.bias_compensation else None
            silence(linear, units, mean)
    return model


def silence(linear: nn.Linear, kept: list[int], mean: Tensor | None) -> None:
    gone = torch.ones(linear.in_features, dtype=torch.bool)
    gone[kept] = False
    if not kept and linear.bias is not None:
        linear.bias.data.zero_()  # the block leaves with its bias
    if mean is not None and kept:
        folded = (linear.weight.data[:, gone].double() @ mean[gone]).float()
        before = linear.bias.data if linear.bias is not None else torch.zeros_like(folded)
        linear.bias = nn.Parameter(before + folded)
    linear.weight.data[:, gone] = 0


def cut(base: Path, plan: Plan, export: Any, statistics: Statistics, out: Path) -> dict[str, Any]:
    checkpoint = Checkpoint(base)
    config = slim_config(checkpoint.config, plan, export)
    slice_base(checkpoint, plan, config, statistics, out, lambda fraction, message: None)
    return config


def assert_same_logits(slim: Any, dense: Any, ids: Tensor) -> None:
    with torch.no_grad():
        expected, actual = dense(ids).logits, slim(ids).logits
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


def assert_counted(directory: Path, config: dict[str, Any]) -> None:
    tensors = read_header(directory / "model.safetensors", "slim")
    saved = sum(math.prod(tensor.shape) for tensor in tensors.values())
    assert saved == Geometry.from_config(config).parameters


@pytest.mark.parametrize("compensated", [False, True], ids=["plain", "compensated"])
@pytest.mark.parametrize("shape", ["even", "uneven"])
@pytest.mark.parametrize("name", DENSE_NAMES)
def test_a_per_layer_export_computes_what_the_silenced_dense_base_computes(
    name: str,
    shape: str,
    compensated: bool,
    dense_base: Callable[[str], Path],
    ids: Tensor,
    means: Means,
    tmp_path: Path,
    request: pytest.FixtureRequest,
):
    plan: Plan = request.getfixturevalue(f"{shape}_plan")
    plan = plan.model_copy(update={"bias_compensation": compensated})
    base = dense_base(name)
    statistics = means(64 if name == "qwen3" else 32, 48)
    config = cut(base, plan, "per_layer", statistics, tmp_path)
    assert config["model_type"] == "slim_" + name.split()[0]
    assert_same_logits(load(tmp_path), silenced(base, plan, statistics), ids)
    assert_counted(tmp_path, config)


@pytest.mark.parametrize(
    ("name", "compensated", "model_type"),
    [
        ("llama", False, "llama"),
        ("llama", True, "llama"),
        ("llama with biases", True, "llama"),
        ("mistral", False, "mistral"),
        ("mistral without window", True, "llama"),
        ("qwen2", False, "llama"),  # with half the heads
        ("qwen2", True, "llama"),
        ("qwen3", False, "qwen3"),
        ("gemma2", False, "gemma2"),
        ("phi3", False, "phi3"),
    ],
)
def test_a_uniform_export_is_a_stock_class_that_computes_the_same(
    name: str,
    compensated: bool,
    model_type: str,
    dense_base: Callable[[str], Path],
    even_plan: Plan,
    ids: Tensor,
    means: Means,
    tmp_path: Path,
):
    plan = even_plan.model_copy(update={"bias_compensation": compensated})
    base = dense_base(name)
    statistics = means(64 if name == "qwen3" else 32, 48)
    config = cut(base, plan, "uniform", statistics, tmp_path)
    assert config["model_type"] == model_type
    slim = load(tmp_path)
    assert type(slim).__module__.startswith("transformers.")
    assert_same_logits(slim, silenced(base, plan, statistics), ids)
    assert_counted(tmp_path, config)


def test_a_qwen2_that_keeps_its_heads_keeps_its_class(
    dense_base: Callable[[str], Path], ids: Tensor, tmp_path: Path
):
    layer = LayerPlan(kv_groups=(0, 1, 2, 3), ffn_channels=tuple(range(0, 48, 3)))
    plan = Plan(layers=(layer,) * 4)
    config = cut(dense_base("qwen2"), plan, "uniform", Statistics(), tmp_path)
    assert config["model_type"] == "qwen2"
    slim = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert_same_logits(slim, silenced(dense_base("qwen2"), plan, Statistics()), ids)


def test_layers_that_are_gone_leave_a_shorter_stock_model(
    dense_base: Callable[[str], Path], even_plan: Plan, ids: Tensor, tmp_path: Path
):
    gone = LayerPlan(kv_groups=(), ffn_channels=())
    plan = Plan(layers=(even_plan.layers[0], gone, even_plan.layers[2], gone))
    config = cut(dense_base("llama"), plan, "auto", Statistics(), tmp_path)
    assert (config["model_type"], config["num_hidden_layers"]) == ("llama", 2)
    slim = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert_same_logits(slim, silenced(dense_base("llama"), plan, Statistics()), ids)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    def units(count: int) -> tuple[int, ...]:
        return tuple(sorted(draw(st.sets(st.integers(0, count - 1)))))

    layers = [LayerPlan(kv_groups=units(4), ffn_channels=units(48)) for _ in range(3)]
    with_attention = LayerPlan(kv_groups=(3,), ffn_channels=units(48))
    return Plan(layers=(with_attention, *layers), bias_compensation=draw(st.booleans()))


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=plans())
def test_any_plan_is_cut_right(
    plan: Plan,
    dense_base: Callable[[str], Path],
    ids: Tensor,
    means: Means,
    tmp_path_factory: pytest.TempPathFactory,
):
    out = tmp_path_factory.mktemp("slim")
    config = cut(dense_base("llama"), plan, "auto", means(32, 48), out)
    assert_same_logits(load(out), silenced(dense_base("llama"), plan, means(32, 48)), ids)
    assert_counted(out, config)


def test_a_slim_base_has_the_files_that_serving_needs(
    dense_base: Callable[[str], Path], even_plan: Plan, tmp_path: Path
):
    base = dense_base("llama")
    cut(base, even_plan, "auto", Statistics(), tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / name).read_bytes() == (base / name).read_bytes()


def test_tensors_keep_the_dtype_of_the_base(
    dense_base: Callable[[str], Path], even_plan: Plan, means: Means, tmp_path: Path
):
    half = tmp_path / "half"
    model = AutoModelForCausalLM.from_pretrained(dense_base("llama"), dtype=torch.bfloat16)
    model.save_pretrained(half)
    plan = even_plan.model_copy(update={"bias_compensation": True})
    cut(half, plan, "auto", means(32, 48), tmp_path / "slim")
    tensors = read_header(tmp_path / "slim" / "model.safetensors", "slim")
    assert {tensor.dtype for tensor in tensors.values()} == {"BF16"}


def test_a_base_in_shards_is_cut_like_a_base_in_one_file(
    dense_base: Callable[[str], Path], even_plan: Plan, tmp_path: Path
):
    sharded = tmp_path / "sharded"
    model = AutoModelForCausalLM.from_pretrained(dense_base("llama"), dtype=torch.float32)
    model.save_pretrained(sharded, max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    for base, out in ((sharded, "a"), (dense_base("llama"), "b")):
        cut(base, even_plan, "auto", Statistics(), tmp_path / out)
    one, other = (tmp_path / out / "model.safetensors" for out in "ab")
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("name", "shape", "compensated", "reason"),
    [
        ("llama", "uneven", False, "differ in width"),
        ("qwen3", "even", True, "biases"),
        ("mistral", "even", True, "sliding window"),
    ],
)
def test_a_uniform_export_that_no_stock_class_can_hold_is_refused(
    name: str,
    shape: str,
    compensated: bool,
    reason: str,
    dense_base: Callable[[str], Path],
    request: pytest.FixtureRequest,
):
    plan: Plan = request.getfixturevalue(f"{shape}_plan")
    plan = plan.model_copy(update={"bias_compensation": compensated})
    config = json.loads((dense_base(name) / "config.json").read_text())
    with pytest.raises(InvalidInput, match=reason) as refused:
        slim_config(config, plan, "uniform")
    assert refused.value.field == "export"
    assert slim_config(config, plan, "auto")["model_type"] == f"slim_{name}"


def test_heads_that_the_llama_class_refuses_are_exported_per_layer(
    dense_base: Callable[[str], Path],
):
    layer = LayerPlan(kv_groups=(0, 1, 2), ffn_channels=(0, 1))  # 6 heads do not divide 32
    config = json.loads((dense_base("llama") / "config.json").read_text())
    assert slim_config(config, Plan(layers=(layer,) * 4), "auto")["model_type"] == "slim_llama"
