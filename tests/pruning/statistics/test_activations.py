"""Statistics of activations: Minitron's means, FLAP's fluctuation, moments of hidden states."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pruning.statistics.absolute import AbsoluteMeans
from pruning.statistics.released import ReleasedFluctuation

INPUTS = torch.tensor([[[1.0], [3.0]], [[2.0], [6.0]], [[-1.0], [-5.0]]])  # means 2, 4, -3


def seen(model, ids: Tensor, path: str) -> Tensor:
    """The inputs of a module of the model, (S, T, C)."""
    found: list[Tensor] = []
    module = model.get_submodule(path)
    with (
        module.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0])),
        torch.no_grad(),
    ):
        model(ids)
    return found[0]


def test_absolute_means_are_squared_sequence_by_sequence():
    means = AbsoluteMeans.updated(AbsoluteMeans.updated(None, INPUTS[:1]), INPUTS[1:])
    assert (means.sequences, means.squares_C.tolist()) == (3, [4.0 + 16.0 + 9.0])


@given(cut=st.integers(1, 2))
def test_absolute_means_do_not_depend_on_the_batches(cut: int):
    whole = AbsoluteMeans.updated(None, INPUTS)
    merged = AbsoluteMeans.updated(None, INPUTS[:cut]).merge(
        AbsoluteMeans.updated(None, INPUTS[cut:])
    )
    assert merged == whole


def test_the_released_fluctuation_is_not_the_variance():
    # running means 2, 3, 1; squared deviations from the new mean: (skipped), 1 + 9, 4 + 36
    # 0 → 0 · 0/1 + 10/2 = 5 → 5 · 1/2 + 40/3
    released = ReleasedFluctuation.updated(None, INPUTS)
    assert released.mean_C.tolist() == [1.0]
    assert released.fluctuation_C.tolist() == pytest.approx([5 / 2 + 40 / 3])


@given(cut=st.integers(1, 2))
def test_the_released_fluctuation_is_updated_sequence_by_sequence(cut: int):
    whole = ReleasedFluctuation.updated(None, INPUTS)
    halves = ReleasedFluctuation.updated(
        ReleasedFluctuation.updated(None, INPUTS[:cut]), INPUTS[cut:]
    )
    assert halves == whole


@given(st.lists(st.lists(st.floats(-100, 100), min_size=2, max_size=2), min_size=2, max_size=9))
def test_the_released_fluctuation_counts_sequence_k_by_k_minus_1_over_k(values: list[list[float]]):
    inputs = torch.tensor(values, dtype=torch.float64).unsqueeze(-1)
    total = 0.0
    for k in range(2, len(inputs) + 1):
        mean = inputs[:k].mean()
        total += float((inputs[k - 1] - mean).square().sum()) * (k - 1) / k
    found = ReleasedFluctuation.updated(None, inputs).fluctuation_C
    assert found.item() == pytest.approx(total / (len(inputs) - 1), abs=1e-9)


def test_streamed_records_are_those_of_the_whole_model(whole, streamed, ids: Tensor):
    model = whole("llama")
    needs = ("absolute_means", "released_fluctuation", "hidden_moments")
    statistics = streamed("llama", *needs)
    for linear, path in (("o_proj", "self_attn.o_proj"), ("down_proj", "mlp.down_proj")):
        inputs = seen(model, ids, f"model.layers.2.{path}")
        absolute = statistics.absolute_means[2, linear].squares_C
        torch.testing.assert_close(absolute, AbsoluteMeans.updated(None, inputs).squares_C)
        fluctuation = statistics.released_fluctuation[2, linear].fluctuation_C
        expected = ReleasedFluctuation.updated(None, inputs).fluctuation_C
        torch.testing.assert_close(fluctuation, expected, rtol=1e-4, atol=1e-6)
    hidden = seen(model, ids, "model.layers.2.mlp.up_proj").double()
    found = statistics.moments[2, "gate_proj"].mean_square_C
    torch.testing.assert_close(found, hidden.square().mean(dim=(0, 1)), rtol=1e-4, atol=1e-6)
