"""Slim bases back in the dense geometry."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pruning.digest import file_digest, tree_digest
from pruning.export import slim_config
from pruning.lifting import lift
from pruning.plan import Plan
from pruning.slicing import slice_base
from pruning.stats import Statistics
from pruning.weights.checkpoint import Checkpoint

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "llama with biases"]


def quiet(fraction: float, message: str) -> None:
    return None


@pytest.fixture
def cut() -> Callable[..., Path]:
    def cut(base: Path, plan: Plan, destination: Path) -> Path:
        checkpoint = Checkpoint(base)
        config = slim_config(checkpoint.config, plan, "per_layer")
        slice_base(checkpoint, plan, config, Statistics(), destination, quiet)
        return destination

    return cut


@pytest.mark.parametrize("family", FAMILIES)
def test_cut_lifted_and_cut_again_a_slim_base_is_what_it_was(
    family: str, dense_base: Callable[[str], Path], even_plan: Plan, cut: Callable, tmp_path: Path
):
    slim = cut(dense_base(family), even_plan, tmp_path / "slim")
    lift(Checkpoint(dense_base(family)), even_plan, slim, tmp_path / "lifted")
    again = cut(tmp_path / "lifted", even_plan, tmp_path / "again")
    assert tree_digest(again) == tree_digest(slim)


def test_units_that_stayed_have_the_weights_of_the_slim_base_and_the_others_a_tenth_of_theirs(
    dense_base: Callable[[str], Path], even_plan: Plan, cut: Callable, tmp_path: Path
):
    base = dense_base("llama with biases")
    slim = cut(base, even_plan, tmp_path / "slim")
    lift(Checkpoint(base), even_plan, slim, tmp_path / "lifted")
    before, after = (load_file(d / "model.safetensors") for d in (base, tmp_path / "lifted"))
    assert {n: t.shape for n, t in before.items()} == {n: t.shape for n, t in after.items()}
    kept = torch.zeros(48, dtype=torch.bool)
    kept[list(even_plan.layers[1].ffn_channels)] = True
    mlp = "model.layers.1.mlp"
    for name in (f"{mlp}.up_proj.weight", f"{mlp}.gate_proj.bias"):
        assert torch.equal(after[name][kept], before[name][kept])
        torch.testing.assert_close(after[name][~kept], before[name][~kept] * 0.1)
    down = f"{mlp}.down_proj.weight"
    assert torch.equal(after[down][:, kept], before[down][:, kept])
    torch.testing.assert_close(after[down][:, ~kept], before[down][:, ~kept] * 0.1)
    for name in ("model.embed_tokens.weight", "model.norm.weight", f"{mlp}.down_proj.bias"):
        assert torch.equal(after[name], before[name])


def test_a_plan_that_keeps_everything_changes_nothing(
    dense_base: Callable[[str], Path], cut: Callable, tmp_path: Path
):
    base = dense_base("qwen2")
    plan = Plan.dense(Checkpoint(base).geometry)
    lift(Checkpoint(base), plan, cut(base, plan, tmp_path / "slim"), tmp_path / "lifted")
    before, after = (load_file(d / "model.safetensors") for d in (base, tmp_path / "lifted"))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    tokenizers = (directory / "tokenizer.json" for directory in (base, tmp_path / "lifted"))
    assert len({file_digest(path) for path in tokenizers}) == 1
