"""Least squares on Gram matrices, against numbers worked by hand and against brute force."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pruning.errors import InvalidInput
from pruning.statistics import grams
from pruning.statistics.grams import Gram, StoredGrams, channels_of, elimination, refit

TINY = 1e-12  # damping that changes nothing here


def numbers(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def correlated(tokens: int, channels: int, seed: int) -> Tensor:
    """Inputs of which each is partly a mixture of the others."""
    return random(tokens, channels, seed=seed) @ random(channels, channels, seed=seed + 1)


def error(weight: Tensor, fitted: Tensor, kept: Tensor, inputs: Tensor) -> float:
    return float((inputs @ weight.T - inputs[:, kept] @ fitted.T).square().sum())


def gram_of(inputs: Tensor) -> Gram:
    gram = Gram(inputs.shape[1])
    gram.add(inputs)
    return gram


def test_an_input_takes_over_from_its_twin():
    # inputs 0 and 1 are always equal: without 1, 0 must carry both weights, 3 + 4
    inputs = numbers([1, 1, 0], [2, 2, 1], [0, 0, 5])
    fitted = refit(numbers([3, 4, 6]), inputs.T @ inputs, torch.tensor([0, 2]), TINY)
    torch.testing.assert_close(fitted, numbers([7, 6]), rtol=1e-9, atol=1e-9)


def test_the_refit_solves_the_normal_equations():
    # H = [[2, 1], [1, 3]]; keep input 0: w' = (2·1 + 1·4) / 2 = 3
    found = refit(numbers([1, 4]), numbers([2, 1], [1, 3]), torch.tensor([0]), TINY)
    assert found.item() == pytest.approx(3)


def test_damping_pulls_towards_the_weights_that_were_there():
    # λ = 0.4 · (2 + 3) / 2 = 1: w' = (6 + 1 · 1) / (2 + 1)
    found = refit(numbers([1, 4]), numbers([2, 1], [1, 3]), torch.tensor([0]), 0.4)
    assert found.item() == pytest.approx(7 / 3)


def test_a_refit_is_what_least_squares_finds_on_the_tokens_themselves():
    inputs, weight = correlated(50, 8, seed=3), random(4, 8)
    kept = torch.tensor([0, 2, 3, 7])
    expected = torch.linalg.lstsq(inputs[:, kept], inputs @ weight.T).solution.T
    torch.testing.assert_close(refit(weight, inputs.T @ inputs, kept, TINY), expected)


@settings(max_examples=50)
@given(
    seed=st.integers(0, 1000),
    kept=st.sets(st.integers(0, 7), min_size=1),
    damping=st.floats(1e-6, 1),
    tokens=st.integers(1, 30),
)
def test_a_refit_never_does_worse_than_leaving_the_weights_alone(
    seed: int, kept: set[int], damping: float, tokens: int
):
    inputs, weight, chosen = correlated(tokens, 8, seed), random(3, 8), torch.tensor(sorted(kept))
    fitted = refit(weight, inputs.T @ inputs, chosen, damping)
    before = error(weight, weight[:, chosen], chosen, inputs)
    assert error(weight, fitted, chosen, inputs) <= before * (1 + 1e-9) + 1e-9


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), damping=st.floats(1e-6, 1))
def test_keeping_everything_changes_nothing(seed: int, damping: float):
    inputs, weight = correlated(20, 6, seed), random(3, 6)
    fitted = refit(weight, inputs.T @ inputs, torch.arange(6), damping)
    torch.testing.assert_close(fitted, weight, rtol=1e-6, atol=1e-8)


def test_inputs_that_are_always_zero_are_no_obstacle():
    found = refit(numbers([1, 2]), torch.zeros(2, 2, dtype=torch.float64), torch.tensor([1]), 0.01)
    assert found.tolist() == [[2]]


def test_a_float32_gram_that_rounding_spoiled_is_solved_with_a_larger_ridge():
    # rank one up to rounding, and slightly indefinite; two inputs take over from a third
    gram = torch.ones(3, 3) - torch.diag(torch.tensor([0.0, 1e-4, 1e-4]))
    found = refit(torch.ones(1, 3), gram, torch.tensor([0, 1]), 1e-8)
    assert found.sum().item() == pytest.approx(3, rel=1e-2)


def test_activations_that_are_not_finite_are_refused():
    with pytest.raises(InvalidInput, match="not finite"):
        refit(torch.ones(1, 2), torch.full((2, 2), torch.nan), torch.tensor([0]), 0.01)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_removed_unit_costs_what_brute_force_least_squares_loses(channels: int):
    inputs, weight, units = correlated(60, 4 * channels, seed=5), random(3, 4 * channels), range(4)
    losses = []
    for unit in units:
        rest = channels_of(torch.tensor([u for u in units if u != unit]), channels)
        best = torch.linalg.lstsq(inputs[:, rest], inputs @ weight.T).solution.T
        losses.append(error(weight, best, rest, inputs))
    # in a single round nothing is refit between two removals
    costs = elimination(weight, inputs.T @ inputs, channels, TINY, rounds=1)
    assert costs.tolist() == pytest.approx(losses)


@pytest.mark.parametrize("channels", [1, 2])
def test_one_by_one_the_costs_add_up_to_the_error_of_greedy_removal(channels: int):
    inputs, weight = correlated(60, 5 * channels, seed=9), random(3, 5 * channels)
    costs = elimination(weight, inputs.T @ inputs, channels, TINY, rounds=5)
    order = costs.argsort()
    losses = []
    for stays in range(4, 0, -1):
        rest = channels_of(order[5 - stays :].sort().values, channels)
        best = torch.linalg.lstsq(inputs[:, rest], inputs @ weight.T).solution.T
        losses.append(error(weight, best, rest, inputs))
    total = float((inputs @ weight.T).square().sum())
    rises = [b - a for a, b in itertools.pairwise([0, *losses, total])]
    greedy = list(itertools.accumulate(rises, max))
    assert costs[order].tolist() == pytest.approx(greedy)


def test_greedy_removal_keeps_one_of_two_twins():
    # inputs 0 and 1 are equal, and each matters more than 2; in one round both twins seem free
    inputs = numbers([1, 1, 0], [-1, -1, 0], [0, 0, 0.1])
    costs = elimination(numbers([1, 1, 1]), inputs.T @ inputs, 1, 1e-9, rounds=3)
    assert costs.argsort().tolist()[1] == 2
    at_once = elimination(numbers([1, 1, 1]), inputs.T @ inputs, 1, 1e-9, rounds=1)
    assert at_once.argsort().tolist()[2] == 2


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), rounds=st.integers(1, 12))
def test_costs_are_distinct_and_positive_so_that_ranking_them_is_the_order_of_leaving(
    seed: int, rounds: int
):
    inputs = correlated(4, 10, seed)  # fewer tokens than inputs: many removals are almost free
    costs = elimination(random(3, 10), inputs.T @ inputs, 1, 0.01, rounds)
    assert len(set(costs.tolist())) == 10
    assert costs.min() > 0


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), cut=st.integers(1, 19))
def test_a_gram_does_not_depend_on_how_the_tokens_were_split(seed: int, cut: int):
    inputs = correlated(20, 4, seed)
    gram = Gram(4)
    gram.add(inputs[:cut])
    gram.add(inputs[cut:])
    assert gram.count == 20
    torch.testing.assert_close(gram.products_CC, inputs.T @ inputs)
    centred = inputs - inputs.mean(0)
    torch.testing.assert_close(gram.centred_CC(), centred.T @ centred)


def test_wide_grams_are_float32_and_added_up_in_place(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(grams, "WIDE", 3)
    inputs = correlated(20, 4, seed=1).float()
    gram = gram_of(inputs)
    assert gram.products_CC.dtype == torch.float32
    torch.testing.assert_close(gram.products_CC, inputs.T @ inputs)


def test_stored_grams_come_back_by_layer_and_linear(tmp_path: Path):
    stored = StoredGrams(tmp_path / "grams")
    gram = gram_of(numbers([1, 2]))
    stored.store((11, "o_proj"), gram)
    stored.store((2, "down_proj"), gram)
    assert set(stored) == {(11, "o_proj"), (2, "down_proj")}
    assert len(stored) == 2
    assert stored[11, "o_proj"].tolist() == [[1, 2], [2, 4]]
    with pytest.raises(KeyError):
        stored[0, "o_proj"]
