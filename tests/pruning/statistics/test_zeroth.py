"""Zeroth-order sensitivity: two forwards per perturbation, equal to those of the whole model."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pruning.architectures.llama import LINEARS
from pruning.statistics import zeroth
from pruning.statistics.streaming import Stream
from pruning.statistics.zeroth import EPSILON, NOISES, ZerothOrder
from pruning.weights.checkpoint import Checkpoint
from pruning.weights.tensors import block_of


def nothing(*_: object) -> None:
    return None


@pytest.mark.parametrize(("layer", "linear"), [(0, "q_proj"), (2, "down_proj")])
def test_it_is_the_finite_difference_of_the_loss_of_the_whole_model(
    layer: int, linear: str, whole, streamed, ids: Tensor
):
    found = streamed("llama", "zeroth_order").zeroth_order[layer, linear]
    model, total = whole("llama"), 0.0
    weight = model.get_submodule(f"model.layers.{layer}.{block_of(linear)}.{linear}").weight
    original = weight.data.clone()
    for n in range(NOISES):
        seed = (layer * len(LINEARS) + LINEARS.index(linear)) * NOISES + n
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
        losses = []
        for sign in (1, -1):
            weight.data = original + sign * EPSILON * noise
            with torch.no_grad():
                losses.append(model(ids, labels=ids).loss.item())
        total += abs(losses[0] - losses[1]) / (2 * EPSILON)
    assert found.noises == NOISES
    assert found.total.item() == pytest.approx(total, rel=0.05, abs=2e-3)


def test_it_approaches_the_gradient_along_the_noise(
    dense_base, whole, ids: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stream = Stream(Checkpoint(dense_base("llama")), ids, tmp_path)
    stream.forward(nothing, keep_inputs=True, progress=nothing)
    model = whole("llama")
    model(ids, labels=ids).loss.backward()
    gradient = model.model.layers[1].mlp.up_proj.weight.grad
    noise = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr(zeroth, "EPSILON", 1e-2)  # float32 rounds away what smaller steps change
    slope = zeroth._slope(stream, 1, "up_proj", 5)
    assert slope == pytest.approx((gradient * noise).sum().item(), rel=0.05)


def test_two_forwards_per_perturbation_and_no_gradient(
    dense_base, ids: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stream = Stream(Checkpoint(dense_base("llama")), ids, tmp_path)
    stream.forward(nothing, keep_inputs=True, progress=nothing)
    starts: list[int] = []
    forward = stream.loss_from

    def counted(index: int, *rest) -> float:
        starts.append(index)
        return forward(index, *rest)

    monkeypatch.setattr(stream, "loss_from", counted)
    found = zeroth.measure(stream, nothing)
    assert len(found) == 4 * len(LINEARS)
    assert [starts.count(i) for i in range(4)] == [2 * NOISES * len(LINEARS)] * 4
    assert all(parameter.grad is None for parameter in stream.layer.parameters())


def test_perturbations_of_two_runs_add_up():
    merged = ZerothOrder(2, torch.tensor(3.0)).merge(ZerothOrder(1, torch.tensor(4.0)))
    assert (merged.noises, merged.total.item()) == (3, 7.0)
