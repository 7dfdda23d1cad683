"""What each source gives to a text, and in which order."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.mixture import interleaved, shares


@pytest.mark.parametrize(
    ("available", "weights", "total", "expected"),
    [
        ([100, 100], [1, 1], 10, [5, 5]),
        ([100, 100], [3, 1], 8, [6, 2]),
        ([100, 100, 100], [1, 1, 1], 10, [4, 3, 3]),  # a tie of remainders: the first
        ([2, 100], [1, 1], 10, [2, 8]),  # the second makes up for the first
        ([2, 3, 100], [4, 4, 2], 20, [2, 3, 15]),
        ([2, 3], [1, 9], 100, [2, 3]),
    ],
)
def test_shares_are_in_proportion_as_far_as_a_source_goes(
    available: list[int], weights: list[float], total: int, expected: list[int]
):
    assert shares(available, weights, total) == expected


sources = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), min_size=1, max_size=6)


@given(sources=sources, total=st.integers(0, 100))
def test_all_that_is_asked_for_is_given_and_none_gives_more_than_its_share_while_another_could(
    sources: list[tuple[int, int]], total: int
):
    available, weights = zip(*sources, strict=True)
    given_ = shares(available, weights, total)
    assert sum(given_) == min(total, sum(available))
    assert all(0 <= count <= most for count, most in zip(given_, available, strict=True))
    free = [i for i in range(len(sources)) if given_[i] < available[i]]
    for i in free:  # whoever could give more gives as much for its weight as anybody, but for one
        for j in range(len(sources)):
            assert Fraction(given_[j] - 1, weights[j]) <= Fraction(given_[i] + 1, weights[i])


def test_shares_are_spread_over_the_whole():
    assert "".join(interleaved(["aaaa", "bb"])) == "abaaba"


@given(sizes=st.lists(st.integers(0, 20), min_size=1, max_size=4))
def test_any_opening_of_a_mixture_is_one(sizes: list[int]):
    mixed = interleaved([[(number, i) for i in range(size)] for number, size in enumerate(sizes)])
    assert len(mixed) == sum(sizes)
    for number, size in enumerate(sizes):
        assert [item for item in mixed if item[0] == number] == [(number, i) for i in range(size)]
        for length in range(len(mixed) + 1):
            present = sum(item[0] == number for item in mixed[:length])
            assert abs(present - size * length / max(1, len(mixed))) <= len(sizes)
