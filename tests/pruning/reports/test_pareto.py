"""The Pareto front: what is on it, and what keeps the others off it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.reports.pareto import dominates, dominators, front

# few values, so that points often agree in a coordinate
coordinates = st.integers(0, 5) | st.floats(-1, 6, allow_nan=False)
clouds = st.integers(1, 3).flatmap(
    lambda n: st.lists(st.tuples(*(coordinates for _ in range(n))), max_size=25)
)


@given(clouds)
def test_no_member_is_dominated_and_whoever_is_not_one_is_dominated_by_a_member(points):
    members = front(points)
    for i, point in enumerate(points):
        above = [j for j in members if dominates(points[j], point)]
        assert (i in members) == (not above)
        assert not any(dominates(other, point) for other in points) or i not in members


@given(clouds)
def test_each_point_off_the_front_is_told_a_member_that_dominates_it(points):
    members = front(points)
    for i, by in enumerate(dominators(points)):
        assert (by is None) == (i in members)
        assert by is None or (by in members and dominates(points[by], points[i]))


@given(clouds)
def test_the_front_ascends(points):
    ordered = [points[i] for i in front(points)]
    assert ordered == sorted(ordered)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        pytest.param([], (), id="nothing"),
        pytest.param([(3, 1), (1, 3), (2, 2)], (1, 2, 0), id="all of a falling curve"),
        pytest.param([(1, 1), (2, 2), (1, 2), (2, 1)], (0,), id="one that is best in both"),
        pytest.param([(1, 1), (1, 1)], (0, 1), id="equals do not dominate each other"),
        pytest.param([(1, 2), (1, 1)], (1,), id="as small and better"),
    ],
)
def test_the_front_of_a_few_points(points, expected):
    assert front(points) == expected


def test_of_several_that_dominate_the_one_that_loses_least_is_told():
    assert dominators([(1, 3), (2, 2), (4, 4)]) == (None, None, 1)
