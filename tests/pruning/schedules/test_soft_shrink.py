"""Units shrink in training, the choice is made anew in each step, and nothing is lost to a kill."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from pruning.digest import tree_digest
from pruning.errors import InvalidInput
from pruning.geometry import Geometry
from pruning.pipeline import STAGES
from pruning.plan import LayerPlan, Plan
from pruning.recipe import PruneSpec
from pruning.schedules.soft_shrink import shrink_units


@pytest.fixture
def spec(asked: Callable[..., PruneSpec]) -> Callable[..., PruneSpec]:
    schedule = {"name": "soft_shrink", "params": {"ratio": 0.8}}
    return lambda **changes: asked(**{"target": 0.5, "schedule": schedule} | changes)


def test_the_weakest_units_shrink_and_only_they(dense_base: Callable[[str], Path]):
    base = dense_base("llama")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    layers: nn.ModuleList = model.model.layers
    mlp = layers[0].mlp
    for number, channel in enumerate((7, 3)):  # 7 is the weakest, then 3
        for weight in (mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight.T):
            weight.data[channel] = 0.001 * (number + 1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    whole = Plan.dense(Geometry.of(base)).layers
    first = LayerPlan(kv_groups=whole[0].kv_groups, ffn_channels=tuple(range(46)))
    shrink_units(layers, Geometry.of(base), Plan(layers=(first, *whole[1:])), 0.5)
    for name, parameter in model.named_parameters():
        expected = before[name].clone()
        if name.startswith("model.layers.0.mlp"):
            rows = expected.T if "down" in name else expected
            rows[[3, 7]] *= 0.5
        assert torch.equal(parameter, expected), name


def test_a_kv_group_shrinks_with_its_query_heads(dense_base: Callable[[str], Path]):
    base = dense_base("llama")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    attention = model.model.layers[0].self_attn
    linears = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    for linear in linears:  # 4 channels a head, two query heads a group: group 2 is the weakest
        rows = linear.weight.data.T if linear is attention.o_proj else linear.weight.data
        width = 4 if linear in (attention.k_proj, attention.v_proj) else 8
        rows[2 * width : 3 * width] = 0.01
    whole = Plan.dense(Geometry.of(base)).layers
    first = LayerPlan(kv_groups=(0, 1, 3), ffn_channels=whole[0].ffn_channels)
    shrink_units(model.model.layers, Geometry.of(base), Plan(layers=(first, *whole[1:])), 0.5)
    for linear in linears:
        halved = (linear.weight == 0.005).sum()
        assert halved == (4 if linear in (attention.k_proj, attention.v_proj) else 8) * 32


def test_the_cut_takes_what_has_shrunk_and_two_runs_write_the_same_bytes(
    spec: Any, run: Any, tmp_path: Path
):
    asked = spec()
    works = [
        run(asked, tmp_path / name, "schedule", "calibrate", "plan", "slice", "recover")
        for name in ("one", "two")
    ]
    assert tree_digest(works[0] / "recover") == tree_digest(works[1] / "recover")
    plan = Plan.model_validate_json((works[0] / "plan" / "plan.json").read_bytes())
    lifted = load_file(works[0] / "schedule" / "base" / "model.safetensors")
    norms = lifted["model.layers.0.mlp.down_proj.weight"].norm(dim=0)
    kept = torch.zeros(48, dtype=torch.bool)
    kept[list(plan.layers[0].ffn_channels)] = True
    assert norms[~kept].max() < norms[kept].min()


def test_a_training_that_was_killed_is_taken_up(spec: Any, run: Any, tmp_path: Path):
    asked = spec()
    expected = run(asked, tmp_path / "undisturbed", "schedule")
    work = tmp_path / "killed"
    work.mkdir()

    def deadly(fraction: float, message: str) -> None:
        if message.startswith("step 4"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        STAGES["schedule"](asked, work, deadly)
    run(asked, work, "schedule")
    assert tree_digest(work / "schedule") == tree_digest(expected / "schedule")


def test_without_distillation_it_is_refused(spec: Any, run: Any, tmp_path: Path):
    with pytest.raises(InvalidInput, match="recover by distill"):
        run(spec(recovery=[{"name": "norms"}]), tmp_path / "work", "schedule")
