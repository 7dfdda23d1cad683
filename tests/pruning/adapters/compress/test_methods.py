"""Compression of one adapter, against what can be counted."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pruning import registry
from pruning.adapters import algebra
from pruning.adapters.algebra import Bag, Bags
from pruning.adapters.compress.darex import divisor, drop_atoms, drop_entries
from pruning.adapters.compression import Deltas
from pruning.errors import InvalidInput
from pruning.recipe import Method

Q = (0, "q_proj")
UP = (1, "up_proj")


def bags(rank: int = 4) -> dict[tuple[int, str], Bag]:
    generator = torch.Generator().manual_seed(0)
    return {
        key: Bag(
            torch.randn(rank, 20, generator=generator), torch.randn(16, rank, generator=generator)
        )
        for key in (Q, UP)
    }


def diagonal(*values: float) -> Bags:
    return {Q: Bag(torch.eye(len(values)), torch.diag(torch.tensor(values)))}


def compress(name: str, given: Bags, probe: Any = None, **params: Any) -> dict[str, Bags]:
    function, _, checked = registry.compress(Method(name=name, params=params))
    return dict(function(given, checked, 0, probe))


@pytest.mark.parametrize(
    ("params", "rank"),
    [
        pytest.param({"rank": 2}, 2, id="a rank"),
        pytest.param({"rank": 9}, 4, id="more than there is"),
        pytest.param({"energy": 0.5}, 1, id="16 of 30"),
        pytest.param({"energy": 0.9}, 3, id="25 is less than 27, 29 is not"),
        pytest.param({"energy": 1}, 4, id="all of it"),
        pytest.param({}, 3, id="95 % by default"),
    ],
)
def test_svd_keeps_a_rank_or_a_share_of_the_energy(params: dict[str, Any], rank: int):
    (found,) = compress("svd", diagonal(4.0, 3.0, 2.0, 1.0), **params).values()
    assert found[Q].rank == rank
    values = algebra.spectrum(found[Q])
    assert values[:rank].tolist() == pytest.approx([4.0, 3.0, 2.0, 1.0][:rank])


def test_an_adapter_of_zeros_keeps_one_atom():
    (found,) = compress("svd", diagonal(0.0, 0.0), energy=0.9).values()
    assert found[Q].rank == 1


def test_a_ladder_has_a_rung_for_each_rank():
    rungs = compress("dylora", bags(), ranks=(3, 1))
    assert {name: found[UP].rank for name, found in rungs.items()} == {"r3": 3, "r1": 1}


def test_sorted_rungs_keep_the_largest_singular_values():
    rungs = compress("dylora", diagonal(1.0, 5.0), ranks=(1,))
    assert torch.allclose(rungs["r1"][Q].delta, torch.diag(torch.tensor([0.0, 5.0])), atol=1e-5)


def test_prefix_rungs_keep_the_first_atoms_at_the_scale_alpha_over_rank():
    rungs = compress("dylora", diagonal(1.0, 5.0), ranks=(1, 2), order="prefix")
    assert rungs["r1"][Q].delta.tolist() == [[2.0, 0.0], [0.0, 0.0]]
    assert rungs["r2"][Q].delta.tolist() == [[1.0, 0.0], [0.0, 5.0]]


def test_atoms_are_dropped_whole_and_at_the_rate_that_was_asked_for():
    many = {(i, "q_proj"): Bag(torch.ones(10, 3), torch.ones(2, 10)) for i in range(100)}
    kept = drop_atoms(many, 0.7, seed=1)
    assert sum(bag.rank for bag in kept.values()) == pytest.approx(300, abs=50)
    assert drop_atoms(many, 0.0, seed=1)[0, "q_proj"].rank == 10


def test_entries_are_dropped_at_the_rate_that_was_asked_for():
    (left, _) = drop_entries(bags(), 0.6, seed=1).values()
    assert float((left != 0).float().mean()) == pytest.approx(0.4, abs=0.1)
    assert torch.allclose(left[left != 0], bags()[Q].delta[left != 0], rtol=1e-5)


def test_dropping_every_atom_is_refused():
    with pytest.raises(InvalidInput) as refused:
        drop_atoms(diagonal(1.0), 0.999, seed=0)
    assert refused.value.field == "method.params.drop"


def test_the_divisor_is_where_the_output_changes_least():
    """The survivors are 0.3 of ΔW and the output is linear in it: 0.3 is right."""
    full = {Q: torch.full((2, 2), 1.0)}
    survivors = {Q: torch.full((2, 2), 0.3)}

    def probe(deltas: Deltas) -> Tensor:
        return deltas[Q].sum(dim=0)

    assert divisor(full, survivors, 0.1, probe) == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize("unit", ["atom", "entry"])
def test_darex_gives_an_adapter_that_is_smaller_and_rescaled(unit: str):
    inputs = torch.randn(30, 20, generator=torch.Generator().manual_seed(1))

    def probe(deltas: Deltas) -> Tensor:
        total = torch.zeros(30, 16)
        for delta in deltas.values():
            total = total + inputs @ delta.T
        return total

    whole = bags(rank=16)
    (found,) = compress("darex", whole, probe, drop=0.5, unit=unit, rank=8).values()
    assert all(bag.rank < 16 for bag in found.values())
    wanted = probe({key: bag.delta for key, bag in whole.items()})
    error = (probe({key: bag.delta for key, bag in found.items()}) - wanted).norm()
    assert error < wanted.norm()  # better than no adapter at all
