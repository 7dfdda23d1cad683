"""The algebra of adapters: what may change in the atoms while ΔW stays what it is."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pruning.adapters import algebra
from pruning.adapters.algebra import Bag
from pruning.adapters.atoms import Atoms


def bag(rank: int, outputs: int = 7, inputs: int = 5, seed: int = 0) -> Bag:
    generator = torch.Generator().manual_seed(seed)
    return Bag(
        torch.randn(rank, inputs, generator=generator),
        torch.randn(outputs, rank, generator=generator),
    )


def close(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() <= 1e-5 * (1 + wanted.abs().max()))


ranks = st.integers(1, 9)  # above the widths of the linear, too


@settings(max_examples=40)
@given(st.lists(st.tuples(ranks, st.floats(-2, 2)), min_size=1, max_size=4))
def test_cat_is_the_weighted_sum(parts: list[tuple[int, float]]):
    bags = [bag(rank, seed=i) for i, (rank, _) in enumerate(parts)]
    weights = [weight for _, weight in parts]
    found = algebra.cat(bags, weights)
    wanted = sum(w * b.delta for w, b in zip(weights, bags, strict=True))
    assert close(found.delta, wanted)
    assert found.rank == sum(rank for rank, _ in parts)


@settings(max_examples=40)
@given(rank=ranks, seed=st.integers(0, 99))
def test_no_gauge_changes_what_is_added(rank: int, seed: int):
    whole = bag(rank, seed=seed)
    for gauge in (algebra.canonical, algebra.balanced, algebra.positive):
        assert close(gauge(whole).delta, whole.delta)


@settings(max_examples=40)
@given(rank=ranks, kept=ranks, seed=st.integers(0, 99))
def test_truncation_is_the_best_approximation_of_its_rank(rank: int, kept: int, seed: int):
    whole = bag(rank, seed=seed)
    found = algebra.truncate(whole, kept)
    left = torch.linalg.svdvals(whole.delta)[kept:]
    error = (whole.delta - found.delta).square().sum()
    assert error == pytest.approx(float(left.square().sum()), abs=1e-4)
    assert found.rank == min(kept, rank, 5)


@settings(max_examples=40)
@given(rank=st.integers(1, 5), seed=st.integers(0, 99))
def test_canonical_atoms_are_orthogonal_sorted_and_balanced(rank: int, seed: int):
    found = algebra.canonical(bag(rank, seed=seed)).select(range(rank))
    lengths = found.a_RI.norm(dim=1)
    assert close(found.b_OR.norm(dim=0), lengths)
    assert close(found.a_RI @ found.a_RI.T, torch.diag(lengths.square()))
    assert lengths.tolist() == sorted(lengths.tolist(), reverse=True)


@settings(max_examples=40)
@given(rank=ranks, seed=st.integers(0, 99))
def test_the_norm_is_that_of_the_product(rank: int, seed: int):
    whole = bag(rank, seed=seed)
    assert algebra.norm(whole) == pytest.approx(float(whole.delta.norm()), rel=1e-5)


def test_balancing_gives_both_sides_the_same_length():
    found = algebra.balanced(Bag(torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0], [1.0]])))
    assert found.a_RI.tolist() == [[2.0, 0.0]]
    assert found.b_OR.tolist() == [[0.0], [2.0]]


def test_an_atom_that_adds_nothing_is_balanced_to_zero():
    found = algebra.balanced(Bag(torch.zeros(1, 2), torch.ones(3, 1)))
    assert not found.a_RI.any()
    assert not found.b_OR.any()


def test_the_sign_of_an_atom_is_that_of_its_largest_entry():
    found = algebra.positive(Bag(torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0]])))
    assert found.a_RI.tolist() == [[-1.0, 2.0]]
    assert found.b_OR.tolist() == [[-3.0]]


@pytest.mark.parametrize(("rslora", "scale"), [(False, 2.0), (True, 4.0)])
def test_the_scale_is_folded_into_b(rslora: bool, scale: float):
    folded = algebra.fold(Atoms(torch.ones(4, 3), torch.ones(2, 4), 8), rslora)
    assert folded.b_OR.unique().tolist() == [scale]  # 8 / 4, or 8 / √4
    assert folded.a_RI.unique().tolist() == [1.0]


def test_plain_adapters_have_scale_one_whatever_their_ranks():
    bags = {(0, "q_proj"): bag(3), (0, "v_proj"): bag(5)}
    back = algebra.bags_of(algebra.adapter_of(bags))
    for key, found in back.items():
        assert torch.equal(found.b_OR, bags[key].b_OR)


def test_rounding_does_not_count_as_rank():
    twice = algebra.cat([bag(2), bag(2)], [1.0, 1.0])
    assert algebra.compact(twice).rank == 2
    assert close(algebra.compact(twice).delta, twice.delta)
    assert math.isclose(
        float(algebra.spectrum(twice)[0]), 2 * float(algebra.spectrum(bag(2))[0]), rel_tol=1e-5
    )
