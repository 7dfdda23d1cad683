"""The weight search finds what can be seen, and stays within its bounds."""

from collections.abc import Sequence

import pytest

from pruning.adapters.search import LIMIT, search


def test_it_finds_the_weights_of_a_bowl():
    def bowl(weights: Sequence[float]) -> float:
        return (weights[0] - 0.8) ** 2 + (weights[1] + 0.4) ** 2

    found = search(bowl, (0.5, 0.5), evaluations=200, seed=0)
    assert found == pytest.approx((0.8, -0.4), abs=0.05)  # the penalty pulls each by 0.0125


def test_weights_stay_within_the_limit():
    found = search(lambda weights: -sum(weights), (1.0, 1.0), evaluations=60, seed=0)
    assert found == (LIMIT, LIMIT)


def test_it_asks_no_more_often_than_it_may_and_the_same_seed_asks_the_same():
    asked: list[list[tuple[float, ...]]] = [[], []]
    for log in asked:
        search(lambda weights, log=log: log.append(tuple(weights)) or 0.0, (0.3,), 7, seed=5)
    assert len(asked[0]) == 7
    assert asked[0] == asked[1]


def test_a_start_that_cannot_be_improved_is_kept():
    assert search(lambda weights: float(weights != [0.5]), (0.5,), 20, seed=0) == (0.5,)
