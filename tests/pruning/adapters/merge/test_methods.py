"""Every merge method, against what is true of all of them and against numbers done by hand."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils import merge_utils
from torch import Tensor

from pruning import methods, registry
from pruning.adapters import algebra
from pruning.adapters.algebra import Bag
from pruning.adapters.merge.knots import align
from pruning.adapters.merging import Merged, Part
from pruning.recipe import Method

ALL = methods.names("merge")
RANDOM = ("dare_linear", "dare_ties")
PUBLISHED = {"feature": "raw", "centroid": "mean", "fit": 0, "energy": False}
OURS = {"feature": "product", "centroid": "rank_one", "fit": 3, "energy": True}


def parts(
    ranks: Sequence[int], weights: Sequence[float] | None = None, seed: int = 0
) -> list[Part]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Part(
            Bag(torch.randn(r, 12, generator=generator), torch.randn(9, r, generator=generator)),
            weights[i] if weights else 1.0,
            seed=i,
        )
        for i, r in enumerate(ranks)
    ]


def merge(name: str, given: Sequence[Part], **params: Any) -> Merged:
    function, _, checked = registry.merge(Method(name=name, params=params))
    return function(given, checked, 0)


def total(given: Sequence[Part]) -> Tensor:
    return torch.stack([part.weight * part.bag.delta for part in given]).sum(dim=0)


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> bool:
    return bool((found - wanted).abs().max() <= tolerance * (1 + wanted.abs().max()))


several = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=40)
@given(ranks=several, seed=st.integers(0, 99))
def test_the_order_of_the_parts_changes_nothing(name: str, ranks: list[int], seed: int):
    given = parts(ranks, seed=seed)
    assert close(merge(name, given[::-1]).bag.delta, merge(name, given).bag.delta)


@pytest.mark.parametrize("name", [name for name in ALL if name not in RANDOM])
@settings(max_examples=40)
@given(seed=st.integers(0, 99), order=st.permutations(range(4)))
def test_the_order_of_the_atoms_changes_nothing(name: str, seed: int, order: list[int]):
    given = parts([4, 4], seed=seed)
    shuffled = [replace(part, bag=part.bag.select(order)) for part in given]
    assert close(merge(name, shuffled).bag.delta, merge(name, given).bag.delta)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("cat", {}),
        ("linear", {}),
        ("svd", {"rank": 9}),
        ("magnitude_prune", {"rank": 9, "density": 1}),
        ("dare_linear", {"rank": 9, "density": 1}),
        ("lego", {"k": 15, "output_reweighting": False}),
        ("lego", {"k": 15, "output_reweighting": False, **PUBLISHED}),
        ("lego", {"k": 15, "output_reweighting": False, **OURS}),
    ],
)
@settings(max_examples=40)
@given(
    ranks=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    weights=st.lists(st.floats(-1.5, 1.5), min_size=3, max_size=3),
)
def test_with_room_for_all_atoms_nothing_is_lost(
    name: str, params: dict[str, Any], ranks: list[int], weights: list[float]
):
    given = parts(ranks, weights)
    assert close(merge(name, given, **params).bag.delta, total(given))


@pytest.mark.parametrize("name", ["svd", "ties", "dare_ties", "knots", "magnitude_prune", "lego"])
def test_the_result_has_the_rank_that_was_asked_for(name: str):
    size = {"k": 2} if name == "lego" else {"rank": 2}
    assert merge(name, parts([4, 3, 5]), **size).bag.rank == 2


def test_adapters_that_cancel_leave_nothing():
    one = parts([3])[0]
    for name in ("cat", "linear", "svd", "magnitude_prune"):
        assert close(merge(name, [one, replace(one, weight=-1.0)]).bag.delta, torch.zeros(9, 12))
    assert merge("linear", [one, replace(one, weight=-1.0)]).bag.rank == 1  # the least there is


def test_linear_needs_no_more_atoms_than_the_sum_has_dimensions():
    one = parts([3])[0]
    assert merge("linear", [one, one]).bag.rank == 3
    assert merge("cat", [one, one]).bag.rank == 6


@pytest.mark.parametrize("name", ["ties", "magnitude_prune"])
def test_on_the_same_matrices_the_entries_are_those_that_peft_computes(name: str):
    given = parts([4, 2, 3])
    wanted = getattr(merge_utils, name)(
        [part.bag.delta for part in given], torch.ones(3), density=0.4
    )
    assert close(merge(name, given, rank=9, density=0.4).bag.delta, wanted)


def test_dropping_keeps_the_sum_on_average():
    given = parts([2])
    mean = torch.zeros(9, 12)
    for seed in range(400):
        mean += merge("dare_linear", [replace(given[0], seed=seed)], rank=9).bag.delta / 400
    assert (mean - total(given)).abs().mean() <= 0.1 * total(given).abs().mean()


@settings(max_examples=40)
@given(ranks=several, seed=st.integers(0, 99))
def test_the_aligned_parts_are_the_parts_in_one_orthonormal_basis(ranks: list[int], seed: int):
    given = [part.bag for part in parts(ranks, seed=seed)]
    basis, aligned = align(given)
    assert close(basis.T @ basis, torch.eye(basis.shape[1]))
    for bag, own in zip(given, aligned, strict=True):
        assert close(basis @ own, bag.delta)


def atoms(*pairs: tuple[list[float], list[float]]) -> Bag:
    return Bag(
        torch.tensor([a for a, _ in pairs]), torch.tensor([b for _, b in pairs]).T.contiguous()
    )


ONE = Part(atoms(([2.0, 0.0], [1.0]), ([0.0, 10.0], [1.0])), 1.0, 0)
TWO = Part(atoms(([0.0, 12.0], [1.0]), ([2.0, 0.0], [3.0])), 1.0, 1)


def test_lego_puts_alike_atoms_together_and_tells_which():
    merged = merge("lego", [ONE, TWO], parameter_reweighting=False, **PUBLISHED)
    found = {
        tuple(a.tolist()): b.tolist()
        for a, b in zip(merged.bag.a_RI, merged.bag.b_OR.T, strict=True)
    }
    assert found == {(2.0, 0.0): [2.0], (0.0, 11.0): [1.0]}  # means of the two clouds
    origins = {frozenset((o.part, o.atom, o.share) for o in own) for own in merged.origins}
    assert origins == {
        frozenset({(0, 0, 0.5), (1, 1, 0.5)}),
        frozenset({(0, 1, 0.5), (1, 0, 0.5)}),
    }


def test_lego_makes_a_centroid_as_long_as_its_members():
    opposite = Part(atoms(([3.0, 0.0], [4.0])), 1.0, 0), Part(atoms(([0.0, 5.0], [0.0])), 1.0, 1)
    merged = merge(
        "lego", opposite, k=1, **PUBLISHED
    )  # both 5 long; their mean (1.5, 2.5, 2) is √12.5
    atom = torch.cat([merged.bag.a_RI[0], merged.bag.b_OR[:, 0]])
    assert atom.norm() == pytest.approx(5)
    assert close(atom, torch.tensor([1.5, 2.5, 2]) * 5 / 12.5**0.5)


def test_lego_finds_atoms_alike_whatever_their_gauge_and_sign():
    """(a, b) and (-a / 4, -4 b) are one atom; another of the pool is orthogonal to it."""
    one = Part(atoms(([2.0, 0.0], [1.0, 1.0]), ([0.0, 1.0], [3.0, 0.0])), 1.0, 0)
    same = Part(atoms(([-0.5, 0.0], [-4.0, -4.0]), ([0.0, 2.0], [1.5, 0.0])), 1.0, 1)
    merged = merge("lego", [one, same], feature="product", centroid="rank_one")
    assert {frozenset((o.part, o.atom) for o in own) for own in merged.origins} == {
        frozenset({(0, 0), (1, 0)}),
        frozenset({(0, 1), (1, 1)}),
    }
    assert close(merged.bag.delta, one.bag.delta)


def test_the_best_rank_one_centroid_of_a_cluster_is_as_long_as_its_members():
    given = Part(atoms(([3.0, 0.0], [1.0])), 1.0, 0), Part(atoms(([0.0, 5.0], [1.0])), 1.0, 1)
    merged = merge("lego", given, k=1, centroid="rank_one", fit=0, energy=False)
    wanted = torch.tensor([[3.0, 5.0]])  # the sum is of rank one; its members are 4 long
    assert close(merged.bag.delta, wanted * 4 / 34**0.5)


@settings(max_examples=40)
@given(ranks=st.lists(st.integers(2, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_a_fit_leaves_nothing_of_the_mean_along_its_own_rows(ranks: list[int], seed: int):
    given = parts(ranks, seed=seed)
    options: dict[str, Any] = {"k": 2, "output_reweighting": False, "energy": False}
    merged = merge("lego", given, **options).bag
    mean = total(given) * 2 / sum(ranks)
    assert close((mean - merged.delta) @ merged.a_RI.T, torch.zeros(9, 2))
    longer = merge("lego", given, **(options | {"energy": True})).bag
    assert close(longer.delta, merged.delta * mean.norm() / merged.delta.norm())
    assert merged.delta.norm() <= mean.norm() * (1 + 1e-5)


@settings(max_examples=20)
@given(seed=st.integers(0, 99))
def test_more_rounds_of_fit_bring_lego_closer_to_the_best_approximation_of_its_rank(seed: int):
    given = parts([3, 3], seed=seed)
    options: dict[str, Any] = {"k": 2, **OURS, "energy": False, "output_reweighting": False}
    mean = total(given) * 2 / 6
    errors = [
        (merge("lego", given, **(options | {"fit": rounds})).bag.delta - mean).norm()
        for rounds in (1, 2, 8)
    ]
    least = torch.linalg.svdvals(mean)[2:].norm()
    assert errors[0] * 1.00001 >= errors[1]
    assert errors[1] * 1.00001 >= errors[2]
    assert errors[2] * 1.00001 >= least


def test_lego_damps_a_result_that_has_more_atoms_than_a_source():
    whole, damped = (
        merge("lego", [ONE, TWO], k=4, output_reweighting=on).bag.delta for on in (False, True)
    )
    assert close(damped, whole * 0.5**0.5)  # √(2 / 4)


def test_lego_finds_k_by_inertia():
    assert merge("lego", [ONE, TWO], inertia=0.2).bag.rank == 2


def test_the_canonical_sign_lets_lego_see_that_two_atoms_are_the_same():
    mirrored = Part(atoms(([-2.0, 0.0], [-1.0]), ([0.0, -10.0], [-1.0])), 1.0, 1)
    merged = merge("lego", [ONE, mirrored], sign="canonical")
    assert close(merged.bag.delta, ONE.bag.delta)


@pytest.mark.parametrize("gauge", ["balanced", "svd"])
def test_an_adapter_merged_with_itself_is_itself_in_every_gauge(gauge: str):
    own = algebra.canonical(parts([3])[0].bag).select(range(3))
    one = Part(own, 1.0, 0)
    merged = merge("lego", [one, replace(one, seed=1)], gauge=gauge, k=3)
    assert close(merged.bag.delta, one.bag.delta)
