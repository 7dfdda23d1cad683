"""A narrower hidden state: which channels stay, and what norms make up for those that leave."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pruning.evaluation import load
from pruning.geometry import Geometry, Layer
from pruning.hidden import best, narrowed
from pruning.plan import Plan
from pruning.statistics import streaming
from pruning.statistics.hidden import HiddenChannels, watch
from pruning.weights.checkpoint import Checkpoint

PLAN = Plan(layers=(), hidden_channels=(1, 3))
NORM = "model.layers.0.input_layernorm.weight"
WEIGHT = torch.tensor([1.0, 2.0, 3.0, 4.0])


def cut(family: str, name: str, whole: Tensor, energy: Tensor | None = None) -> list[Any]:
    energies = {} if energy is None else {name: energy}
    dense = Geometry(family, 2, 4, 2, True, (Layer(2, 2, 3),))
    found: list[Any] = narrowed(name, whole, PLAN, dense, energies).tolist()
    return found


def test_the_most_important_channels_stay_in_their_order():
    assert best(torch.tensor([3.0, 9.0, 1.0, 4.0]), 2) == PLAN.hidden_channels


def test_a_norm_over_half_the_channels_gets_the_root_of_two():
    assert cut("llama", NORM, WEIGHT) == pytest.approx([2 * 2**0.5, 4 * 2**0.5])
    assert cut("gemma2", NORM, WEIGHT) == pytest.approx([3 * 2**0.5 - 1, 5 * 2**0.5 - 1])


def test_a_norm_is_scaled_by_the_share_of_the_energy_that_stays():
    half = torch.tensor([0.25, 0.75, 1.75, 1.25])
    assert cut("llama", NORM, WEIGHT, half) == pytest.approx([2, 4])


def test_a_norm_over_the_channels_of_a_head_stays():
    assert cut("qwen3", "model.layers.0.self_attn.q_norm.weight", WEIGHT) == WEIGHT.tolist()


def test_an_embedding_that_is_scaled_by_the_size_keeps_its_scale_and_the_tied_head_too():
    embedding, final = torch.eye(4)[:2], torch.zeros(4)
    assert cut("llama", "model.embed_tokens.weight", embedding) == [[0.0, 0.0], [1.0, 0.0]]
    scaled = cut("gemma2", "model.embed_tokens.weight", embedding)
    assert scaled[1] == pytest.approx([2**0.5, 0])
    assert cut("gemma2", "model.norm.weight", final) == [0.0, 0.0]  # √2 for the norm, over √2


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_what_is_watched_layer_by_layer_is_what_a_whole_model_shows(
    family: str,
    dense_base: Callable[[str], Path],
    ids: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(streaming, "BATCH_TOKENS", 24)
    base = Checkpoint(dense_base(family))
    watch(base, ids, tmp_path, lambda fraction, message: None).save(tmp_path / "hidden")
    found = HiddenChannels.load(tmp_path / "hidden")
    model, importance, energies = load(base.directory), torch.zeros(32), {}

    def see(name: str, inputs: Tensor, output: Tensor) -> None:
        importance.add_(output.abs().mean(dim=1).square().sum(dim=0).sqrt())
        square = inputs.square()
        energies[name] = (square / square.mean(dim=-1, keepdim=True)).mean(dim=(0, 1))

    for name, module in model.named_modules():
        if name.endswith("norm"):
            module.register_forward_hook(lambda _, i, o, name=name: see(f"{name}.weight", i[0], o))
    with torch.no_grad():
        model(ids)
    assert found.importance_H.float() == pytest.approx(importance, rel=1e-4)
    assert set(found.energies) == set(energies)
    for name, energy in energies.items():
        assert found.energies[name].float() == pytest.approx(energy, rel=1e-4)
        assert float(energy.sum()) == pytest.approx(32, rel=1e-4)
