"""One form for each adapter: whatever invertible matrix stood between its factors, it is gone."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning.adapters.algebra import Bag
from pruning.adapters.generate.gauge import in_frame


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def trained(seed: int, rank: int) -> tuple[Bag, torch.Tensor]:
    """Factors that have moved away from A₀, and A₀."""
    frame = normal(seed, rank, 20)
    return Bag(frame + 0.3 * normal(seed + 1, rank, 20), normal(seed + 2, 15, rank)), frame


@given(seed=st.integers(0, 10_000), rank=st.integers(1, 6))
def test_every_gauge_of_an_adapter_has_the_same_form_and_it_is_the_same_adapter(
    seed: int, rank: int
):
    bag, frame = trained(seed, rank)
    gauge = torch.eye(rank) + 0.3 * normal(seed + 3, rank, rank) / rank**0.5
    other = Bag(gauge @ bag.a_RI, bag.b_OR @ torch.linalg.inv(gauge))
    found, again = in_frame(bag, frame), in_frame(other, frame)
    torch.testing.assert_close(found.delta, bag.delta, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(again.a_RI, found.a_RI, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(again.delta, found.delta, rtol=1e-2, atol=1e-2)


def test_factors_that_have_not_left_their_frame_stay_as_they_are():
    bag, frame = trained(0, 4)
    still = Bag(frame, bag.b_OR)
    found = in_frame(still, frame)
    torch.testing.assert_close(found.a_RI, frame)
    torch.testing.assert_close(found.b_OR, bag.b_OR)


def test_nothing_in_any_gauge_is_nearer_to_the_frame():
    bag, frame = trained(5, 3)
    found = in_frame(bag, frame)
    least = (found.a_RI - frame).norm()
    for seed in range(20):
        moved = (torch.eye(3) + 0.1 * normal(seed, 3, 3)) @ found.a_RI
        assert (moved - frame).norm() > least
