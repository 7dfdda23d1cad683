"""Every descriptor: what is cut by it computes what its dense base computes with units silenced.

So it does where channels of the hidden state leave, while norms still divide by the dense width.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from pruning.adapters.carry import Cut, carry
from pruning.architectures import ARCHITECTURES
from pruning.errors import InvalidInput
from pruning.evaluation import load
from pruning.export import slim_config
from pruning.geometry import Geometry
from pruning.plan import LayerPlan, Plan
from pruning.slicing import slice_base
from pruning.stats import Statistics
from pruning.units import Member, Span, members, selections
from pruning.weights.checkpoint import Checkpoint
from pruning.weights.tensors import expected

HIDDEN, LAYERS = 24, 2  # all head counts below divide the hidden size
FAMILIES = list(ARCHITECTURES)


def write(family: str, shape: dict[str, Any], directory: Path) -> Path:
    """A random base of a family, its norms and biases far from what they are at first."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family,
        **shape,
        vocab_size=40,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        max_position_embeddings=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(directory)
    return directory


def with_adapter(base: Path, directory: Path) -> Path:
    """A LoRA on every linear, as PEFT writes it; about a third of what the base computes.

    One that outweighs the base makes scores so large that rounding alone may move them by 1e-4.
    """
    linears = Geometry.of(base).architecture.linears
    adapted = get_peft_model(load(base), LoraConfig(r=2, target_modules=list(linears)))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(directory)
    return directory


def silence(model: Any, plan: Plan, geometry: Geometry) -> None:
    """Let readers, and adapters on them, see nothing of the units that leave.

    And let nothing into the channels of the hidden state that leave.
    """
    stays = range(geometry.hidden_size) if plan.hidden_channels is None else plan.hidden_channels
    hidden = torch.zeros(geometry.hidden_size).index_fill(0, torch.tensor(stays), 1)
    layers = model.model.layers
    readers = [reader for lay in layers for reader in (lay.self_attn.o_proj, lay.mlp.down_proj)]
    for module in (model.model.embed_tokens, *readers):
        module.register_forward_hook(lambda _, inputs, output: output * hidden)
    for i, (layer, kept) in enumerate(zip(model.model.layers, plan.layers, strict=True)):
        size = geometry.layers[i].group_size
        groups = [g * size + h for g in kept.kv_groups for h in range(size)]
        heads = groups if kept.query_heads is None else kept.query_heads
        channels = [h * geometry.head_dim + c for h in heads for c in range(geometry.head_dim)]
        for linear, stays in (
            (layer.self_attn.o_proj, channels),
            (layer.mlp.down_proj, list(kept.ffn_channels)),
        ):
            mask = torch.zeros(linear.in_features).index_fill(0, torch.tensor(stays), 1)
            linear.register_forward_pre_hook(lambda _, inputs, mask=mask: (inputs[0] * mask,))


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, Any], Plan]:
    """A shape, and a plan that keeps as much of every layer, but not the same of it."""
    kv, size = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 4]))
    shape = {
        "num_key_value_heads": kv,
        "num_attention_heads": kv * size,
        "head_dim": draw(st.sampled_from([4, 8])),
        "intermediate_size": draw(st.integers(5, 20)),
        "tie_word_embeddings": draw(st.booleans()),
    }
    num_hidden = draw(st.sampled_from([HIDDEN, 12, 17]))
    num_groups, num_heads = draw(st.integers(1, kv)), draw(st.integers(1, size))
    width = draw(st.integers(1, shape["intermediate_size"]))

    def some(count: int, of: int) -> tuple[int, ...]:
        return tuple(sorted(draw(st.permutations(range(of)))[:count]))

    def layer() -> LayerPlan:
        groups = some(num_groups, kv)
        heads = tuple(g * size + h for g in groups for h in some(num_heads, size))
        channels = some(width, shape["intermediate_size"])
        return LayerPlan(kv_groups=groups, ffn_channels=channels, query_heads=heads)

    layers = tuple(layer() for _ in range(LAYERS))
    hidden = None if num_hidden == HIDDEN else some(num_hidden, HIDDEN)
    return shape, Plan(layers=layers, hidden_channels=hidden)


@pytest.mark.parametrize("family", FAMILIES)
@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],  # shrinking would build hundreds of models
    print_blob=True,
)
@given(case=cases())
def test_sliced_saved_and_reloaded_it_is_the_silenced_base(
    family: str,
    case: tuple[dict[str, Any], Plan],
    tmp_path_factory: pytest.TempPathFactory,
):
    shape, plan = case
    work = tmp_path_factory.mktemp(family)
    base = write(family, shape, work / "base")
    checkpoint = Checkpoint(base)
    try:
        config = slim_config(checkpoint.config, plan, "uniform")
    except InvalidInput:  # so many heads do not divide the hidden size
        assume(not checkpoint.geometry.architecture.uniform_only)
        config = slim_config(checkpoint.config, plan, "per_layer")
    slice_base(checkpoint, plan, config, Statistics(), work / "slim", lambda done, message: None)
    adapter = with_adapter(base, work / "adapter")
    slim_geometry = Geometry.from_config(config)
    carry(adapter, work / "carried", Cut(checkpoint.geometry, plan, slim_geometry, "slim"), "it")

    ids = torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(1))
    dense, slim = load(base), load(work / "slim")
    silence(dense, plan, checkpoint.geometry)
    # norms of a narrowed hidden state have other weights, rounded to float32
    tolerance = 1e-9 if plan.hidden_channels is None else 1e-4
    assert_same(slim, dense, ids, tolerance)
    assert sum(p.numel() for p in slim.parameters()) == slim_geometry.parameters
    adapted = PeftModel.from_pretrained(load(base), adapter).eval()
    silence(adapted.base_model.model, plan, checkpoint.geometry)
    assert_same(PeftModel.from_pretrained(slim, work / "carried").eval(), adapted, ids, tolerance)


def assert_same(slim: Any, dense: Any, ids: Tensor, tolerance: float) -> None:
    """In float64, so that what is left is no rounding."""
    with torch.no_grad():
        found, wanted = slim.double()(ids).logits, dense.double()(ids).logits
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_its_tensors_are_those_that_transformers_writes(
    family: str, dense_base: Callable[[str], Path]
):
    checkpoint = Checkpoint(dense_base(family))
    written = {name: info.shape for name, (_, info) in checkpoint.infos.items()}
    assert dict(expected(checkpoint.geometry)) == written


def test_a_unit_of_a_fused_linear_has_a_span_in_each_part():
    config = {
        "model_type": "phi3",
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 2,
        "intermediate_size": 3,
        "vocab_size": 10,
    }
    geometry = Geometry.from_config(config)
    qkv, o_proj = members(geometry, 0, "kv_group")  # 8 rows of queries, 4 of keys, 4 of values
    assert qkv == Member("qkv_proj", 0, 2, (Span(0, 4), Span(8, 2), Span(12, 2)))
    assert qkv.indices([1]) == [4, 5, 6, 7, 10, 11, 14, 15]
    assert o_proj == Member("o_proj", 1, 2, (Span(0, 4),))
    gate_up, _ = members(geometry, 0, "ffn_channel")
    assert gate_up.indices([0, 2]) == [0, 2, 3, 5]
    plan = LayerPlan(kv_groups=(1,), ffn_channels=(0,), query_heads=(3,))
    kept = {name: list(s.indices) for name, s in selections(geometry, 0, plan).items()}
    assert kept == {
        "qkv_proj": [6, 7, 10, 11, 14, 15],
        "o_proj": [6, 7],
        "gate_up_proj": [0, 3],
        "down_proj": [0],
    }


@pytest.mark.parametrize("family", ["gemma2", "phi3"])
def test_where_there_is_no_slim_class_widths_that_differ_are_refused(
    family: str, dense_base: Callable[[str], Path], uneven_plan: Plan, even_plan: Plan
):
    config = Checkpoint(dense_base(family)).config
    for plan, export in ((uneven_plan, "auto"), (even_plan, "per_layer")):
        with pytest.raises(InvalidInput, match=f"{family} has stock exports only") as refused:
            slim_config(config, plan, export)
        assert refused.value.field == "export"
