"""Adapters through a cut and back: nothing but indices changes."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from pruning.adapters import atoms
from pruning.adapters.atoms import Adapter, Atoms
from pruning.adapters.carry import Cut, carry, lift, project
from pruning.adapters.peft_format import read_adapter
from pruning.architectures.llama import LINEARS
from pruning.errors import InvalidInput
from pruning.evaluation import load
from pruning.export import slim_config
from pruning.geometry import Geometry
from pruning.plan import LayerPlan, Plan
from pruning.slicing import slice_base
from pruning.stats import Statistics
from pruning.weights.checkpoint import Checkpoint

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": list(LINEARS)}


def train(base: Path, directory: Path, **changes: Any) -> Path:
    """A PEFT directory whose atoms are all random, as PEFT itself writes it."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = {"r": 4, "lora_alpha": 8, "target_modules": list(LINEARS), "task_type": "CAUSAL_LM"}
    adapted = get_peft_model(model, LoraConfig(**{**config, **changes}))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn_like(parameter)
    adapted.save_pretrained(directory)
    return directory


def cut_of(base: Path, plan: Plan, out: Path) -> Cut:
    checkpoint = Checkpoint(base)
    config = slim_config(checkpoint.config, plan, "auto")
    slice_base(checkpoint, plan, config, Statistics(), out, lambda fraction, message: None)
    return Cut(checkpoint.geometry, plan, Geometry.from_config(config), "slim")


def silence_inputs(model: Any, plan: Plan) -> None:
    """Let readers, adapters on them included, see nothing of the units that leave."""
    for layer, kept in zip(model.model.layers, plan.layers, strict=True):
        channels = layer.self_attn.o_proj.in_features // 4
        heads = [g * channels + c for g in kept.kv_groups for c in range(channels)]
        for linear, indices in (
            (layer.self_attn.o_proj, heads),
            (layer.mlp.down_proj, list(kept.ffn_channels)),
        ):
            stays = torch.zeros(linear.in_features)
            stays[indices] = 1
            linear.register_forward_pre_hook(lambda _, inputs, stays=stays: (inputs[0] * stays,))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="every linear of every layer"),
        pytest.param({"layers_to_transform": [1, 3]}, id="some layers"),
        pytest.param({"layers_to_transform": 3}, id="one layer"),
        pytest.param({"target_modules": ["q_proj", "down_proj"]}, id="some linears"),
        pytest.param({"target_modules": r".*\.(0|3)\.mlp\.up_proj|.*\.3\..*o_proj"}, id="regex"),
        pytest.param(
            {
                "rank_pattern": {"layers.3.self_attn.q_proj": 2, "up_proj": 6},
                "alpha_pattern": {"layers.3.self_attn.q_proj": 1, "model.layers.2.mlp.up_proj": 5},
            },
            id="ranks and alphas of their own",
        ),
        pytest.param({"use_rslora": True}, id="rank-stabilised"),
    ],
)
def test_a_carried_adapter_does_on_the_slim_base_what_it_did_on_the_silenced_dense_one(
    changes: dict[str, Any],
    dense_base: Callable[[str], Path],
    uneven_plan: Plan,
    ids: Tensor,
    tmp_path: Path,
):
    base = dense_base("llama")
    source = train(base, tmp_path / "adapter", **changes)
    cut = cut_of(base, uneven_plan, tmp_path / "slim")
    carry(source, tmp_path / "carried", cut, "adapters.a")
    read_adapter(tmp_path / "carried", cut.slim)

    expected = PeftModel.from_pretrained(load(base), source).eval()
    silence_inputs(expected.get_base_model(), uneven_plan)
    actual = PeftModel.from_pretrained(load(tmp_path / "slim"), tmp_path / "carried").eval()
    with torch.no_grad():
        wanted, found = expected(ids).logits, actual(ids).logits
        bare = load(tmp_path / "slim")(ids).logits
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert (found - bare).abs().max() > 1e-2 * wanted.abs().max(), "the adapter must matter"


def test_the_carried_files_name_exactly_the_modules_that_are_there(
    dense_base: Callable[[str], Path], uneven_plan: Plan, tmp_path: Path
):
    base = dense_base("llama")
    source = train(base, tmp_path / "adapter", layers_to_transform=[1, 3])
    (source / "eval.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    carry(source, tmp_path / "carried", cut_of(base, uneven_plan, tmp_path / "slim"), "adapters.a")
    config = json.loads((tmp_path / "carried" / "adapter_config.json").read_text())
    assert config["layers_to_transform"] == [2]  # layer 1 is gone, so 3 is now 2
    assert config["base_model_name_or_path"] == "slim"
    tensors = load_file(tmp_path / "carried" / "adapter_model.safetensors")
    assert {name.split(".")[4] for name in tensors} == {"2"}
    carried_rows = (tmp_path / "carried" / "eval.jsonl").read_bytes()
    assert carried_rows == (source / "eval.jsonl").read_bytes()


def test_an_adapter_of_which_nothing_remains_is_refused(
    dense_base: Callable[[str], Path], uneven_plan: Plan, tmp_path: Path
):
    base = dense_base("llama")
    source = train(base, tmp_path / "adapter", layers_to_transform=[1])
    cut = cut_of(base, uneven_plan, tmp_path / "slim")
    with pytest.raises(InvalidInput, match="removes") as refused:
        carry(source, tmp_path / "carried", cut, "adapters.a")
    assert refused.value.field == "adapters.a"
    assert not (tmp_path / "carried").exists()


def test_an_adapter_of_another_base_is_refused(
    dense_base: Callable[[str], Path], even_plan: Plan, tmp_path: Path
):
    source = train(dense_base("qwen3"), tmp_path / "adapter")
    cut = cut_of(dense_base("llama"), even_plan, tmp_path / "slim")
    with pytest.raises(InvalidInput) as refused:
        carry(source, tmp_path / "carried", cut, "adapters.a")
    assert refused.value.code == "adapter_mismatch"


def tensors_of(adapter: Adapter) -> Mapping[Any, Any]:
    return {key: (a.a.tolist(), a.b.tolist(), a.alpha) for key, a in adapter.atoms.items()}


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    def units(count: int) -> tuple[int, ...]:
        return tuple(sorted(draw(st.sets(st.integers(0, count - 1)))))

    layers = [LayerPlan(kv_groups=units(4), ffn_channels=units(48)) for _ in range(3)]
    full = LayerPlan(kv_groups=(0, 2), ffn_channels=units(48))
    return Plan(layers=(*layers, full))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=plans(), seed=st.integers(0, 99), dropped=st.sets(st.sampled_from(LINEARS)))
def test_projecting_what_was_lifted_gives_the_same_bytes(
    plan: Plan,
    seed: int,
    dropped: set[str],
    dense_base: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
):
    checkpoint = Checkpoint(dense_base("llama"))
    dense, out = checkpoint.geometry, tmp_path_factory.mktemp("adapters")
    slim = Geometry.from_config(slim_config(checkpoint.config, plan, "auto"))
    generator = torch.Generator().manual_seed(seed)
    adapter = Adapter(
        CONFIG,
        {
            (layer, linear): Atoms(
                torch.randn(2 + layer, shape[1], generator=generator),
                torch.randn(shape[0], 2 + layer, generator=generator),
                4 + layer,
            )
            for layer in range(len(slim.layers))
            for linear in LINEARS
            if linear not in dropped and (shape := slim.linear_shape(layer, linear))
        },
    )
    if not adapter.atoms:
        return
    atoms.write(adapter, out / "slim", slim, "slim")
    atoms.write(lift(adapter, dense, plan), out / "dense", dense, "dense")
    read_adapter(out / "dense", dense)
    back = project(atoms.read(out / "dense", "adapter"), dense, plan)
    atoms.write(back, out / "back", slim, "slim")
    assert tensors_of(back) == tensors_of(adapter)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (out / "back" / name).read_bytes() == (out / "slim" / name).read_bytes()


def test_lifting_puts_zeros_where_units_had_left(dense_base: Callable[[str], Path]):
    dense = Checkpoint(dense_base("llama")).geometry
    layer = LayerPlan(kv_groups=(1,), ffn_channels=(0, 47))
    plan = Plan(layers=(layer,) * 4)
    up, down = torch.ones(2, 1), torch.ones(1, 2)
    adapter = Adapter(
        CONFIG,
        {
            (0, "up_proj"): Atoms(torch.ones(1, 32), up, 4),
            (0, "down_proj"): Atoms(down, torch.ones(32, 1), 4),
        },
    )
    lifted = lift(adapter, dense, plan).atoms
    assert lifted[0, "up_proj"].b.flatten().tolist() == [1.0, *[0.0] * 46, 1.0]
    assert lifted[0, "down_proj"].a.flatten().tolist() == [1.0, *[0.0] * 46, 1.0]
