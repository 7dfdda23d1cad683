"""Which cell a limit chooses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pruning.errors import InvalidInput
from pruning.sweeps.choice import Choice, chosen

CELLS = ((500, 0.5, 3.0), (600, 0.2, 4.0), (650, 0.3, 2.0), (800, 0.1, 6.0))  # the third: no member


@pytest.mark.parametrize(
    ("limit", "number"),
    [
        ({"target_bytes": 799}, 1),
        ({"target_bytes": 500}, 0),
        ({"target_bytes": 10_000}, 3),
        ({"max_loss": 0.25}, 1),
        ({"max_loss": 0.5}, 0),
        ({"target_latency_ms": 3.5}, 2),  # fast, though too large for the front of bytes
        ({"cell": 2}, 2),
    ],
    ids=str,
)
def test_the_best_cell_within_the_limit_is_chosen(report, limit, number):
    assert chosen(Choice(**limit), report(*CELLS)).number == number


@pytest.mark.parametrize(
    ("limit", "hint"),
    [
        ({"target_bytes": 499}, "nearest, cell 0, has 500"),
        ({"max_loss": 0.05}, "nearest, cell 3, has 0.1"),
        ({"target_latency_ms": 1.0}, "nearest, cell 2, has 2"),
        ({"cell": 9}, "it made: 0, 1, 2, 3"),
    ],
    ids=str,
)
def test_where_none_fits_the_nearest_is_named(report, limit, hint):
    with pytest.raises(InvalidInput, match=hint) as refused:
        chosen(Choice(**limit), report(*CELLS))
    assert refused.value.field in limit


def test_a_latency_takes_a_sweep_that_measured_it(report):
    with pytest.raises(InvalidInput, match="measured no latency"):
        chosen(Choice(target_latency_ms=5), report((500, 0.5)))


@pytest.mark.parametrize("limits", [{}, {"target_bytes": 5, "max_loss": 0.1}, {"cell": -1}])
def test_a_choice_has_one_limit(limits):
    with pytest.raises(ValidationError):
        Choice(**limits)


def test_the_recipe_is_that_of_the_cell_under_the_name_that_is_asked_for(report):
    found = report(*CELLS)
    cell = found.recipe.cells()[1]
    assert Choice(target_bytes=700).recipe(found) == cell
    named = Choice(target_bytes=700, name="small").recipe(found)
    assert named == cell.model_copy(update={"name": "small"})


@given(points=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1), data=st.data())
def test_within_bytes_or_a_loss_a_member_of_the_front_is_chosen(report, points, data):
    found = report(*points)
    size, loss = data.draw(st.sampled_from(points))
    for choice in (Choice(target_bytes=size), Choice(max_loss=loss)):
        assert chosen(choice, found).number in found.front
