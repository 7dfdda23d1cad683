"""What one streamed pass collects is what the whole model would have shown."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from pruning.calibration import collect
from pruning.statistics import streaming
from pruning.statistics.influence import WHOLE, Influence
from pruning.stats import Statistics
from pruning.weights.checkpoint import Checkpoint

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def whole(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def streamed(base: Path, ids: Tensor, needs: set[Any], work: Path) -> Statistics:
    return collect(Checkpoint(base), ids, needs, work, lambda fraction, message: None)


def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several batches, the last one shorter, and several chunks of logits."""
    monkeypatch.setattr(streaming, "BATCH_TOKENS", 24)
    monkeypatch.setattr(streaming, "HEAD_TOKENS", 5)


@pytest.mark.parametrize("name", FAMILIES)
def test_streamed_moments_are_those_of_hooks_in_the_whole_model(
    name: str,
    dense_base: Callable[[str], Path],
    ids: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    small_batches(monkeypatch)
    model, seen = whole(dense_base(name)), {}
    for index, layer in enumerate(model.model.layers):
        for linear, module in (
            ("o_proj", layer.self_attn.o_proj),
            ("down_proj", layer.mlp.down_proj),
        ):
            module.register_forward_pre_hook(
                lambda _, inputs, key=(index, linear): seen.update({key: inputs[0].flatten(0, 1)})
            )
    with torch.no_grad():
        model(ids)
    moments = streamed(dense_base(name), ids, {"input_moments"}, tmp_path).moments
    assert moments.keys() == seen.keys()
    for key, inputs in seen.items():
        assert moments[key].count == ids.numel()
        torch.testing.assert_close(
            moments[key].mean_C, inputs.double().mean(0), rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(
            moments[key].variance_C, inputs.double().var(0), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_streamed_gradients_are_those_of_autograd_through_the_whole_model(
    name: str,
    dense_base: Callable[[str], Path],
    ids: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    small_batches(monkeypatch)
    model = whole(dense_base(name))
    model(ids, labels=ids).loss.backward()
    stream, visited = streaming.Stream(Checkpoint(dense_base(name)), ids, tmp_path), []

    def compare(index: int, layer: torch.nn.Module) -> None:
        visited.append(index)
        expected = dict(model.model.layers[index].named_parameters())
        for parameter_name, parameter in layer.named_parameters():
            whole_gradient = expected[parameter_name].grad
            scale = whole_gradient.abs().max()
            assert (parameter.grad - whole_gradient).abs().max() <= 1e-4 * scale, parameter_name

    def nothing(*_: object) -> None:
        return None

    stream.forward(nothing, keep_inputs=True, progress=nothing)
    stream.backward(compare, progress=nothing)
    assert visited == [3, 2, 1, 0]


def test_saliency_is_weight_times_gradient_summed_over_all_but_the_unit_axis(
    dense_base: Callable[[str], Path], ids: Tensor, tmp_path: Path
):
    model = whole(dense_base("llama"))
    model(ids, labels=ids).loss.backward()
    saliency = streamed(dense_base("llama"), ids, {"saliency"}, tmp_path).saliency
    mlp = model.model.layers[1].mlp
    for linear, axis in (("gate_proj", 1), ("down_proj", 0)):
        product = mlp.get_submodule(linear).weight * mlp.get_submodule(linear).weight.grad
        found = saliency[1, linear]
        torch.testing.assert_close(
            found.element_C.float(), product.abs().sum(axis), rtol=1e-3, atol=1e-7
        )
        torch.testing.assert_close(found.vector_C.float(), product.sum(axis), rtol=1e-3, atol=1e-6)


def test_streamed_influence_is_the_angle_between_what_enters_and_what_leaves_a_layer(
    dense_base: Callable[[str], Path],
    ids: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    small_batches(monkeypatch)
    with torch.no_grad():
        states = whole(dense_base("llama")).model(ids, output_hidden_states=True).hidden_states
    influence = streamed(dense_base("llama"), ids, {"influence"}, tmp_path).influence
    assert len(influence) == 4
    for layer in range(3):  # the last of `hidden_states` has passed the final norm
        cosine = torch.cosine_similarity(states[layer], states[layer + 1], dim=-1).double()
        found = influence[layer, WHOLE]
        assert found.count == ids.numel()
        assert found.mean_cosine == pytest.approx(float(cosine.mean()), rel=1e-4)
        assert found.mean_angle == pytest.approx(float(cosine.acos().mean()) / math.pi, rel=1e-4)


def test_influence_is_a_half_for_what_is_turned_by_a_right_angle():
    before, after = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 3.0], [1.0, 0.0]])
    found = Influence.of(before[:1], after[:1]).merge(Influence.of(before[1:], after[1:]))
    assert found.count == 2
    assert found.mean_cosine == 0.5  # of 0 and 1
    assert found.mean_angle == pytest.approx(0.25)  # of a half and 0


def test_only_what_is_needed_is_collected_and_nothing_stays_behind(
    dense_base: Callable[[str], Path], ids: Tensor, tmp_path: Path
):
    base = dense_base("llama")
    assert streamed(base, ids, set(), tmp_path) == Statistics()
    assert not streamed(base, ids, {"input_moments"}, tmp_path).saliency
    assert not streamed(base, ids, {"saliency"}, tmp_path).moments
    assert list(tmp_path.iterdir()) == []


def test_progress_rises_from_nought_to_one(
    dense_base: Callable[[str], Path], ids: Tensor, tmp_path: Path
):
    heard: list[float] = []
    collect(
        Checkpoint(dense_base("llama")),
        ids,
        {"saliency"},
        tmp_path,
        lambda fraction, message: heard.append(fraction),
    )
    assert heard == sorted(heard)
    assert heard[0] == 0
    assert heard[-1] <= 1
