"""The order that costs fewer operations."""

import pytest

from pruning.adapters.order import Shape, break_even, cheaper


def test_operations_are_those_of_the_products():
    shape = Shape(inputs=4, outputs=3, rank=2)
    assert shape.chained(5) == 2 * (5 * 4 * 2 + 5 * 2 * 3)
    assert shape.merged == 2 * 3 * 2 * 4


@pytest.mark.parametrize(("tokens", "order"), [(1, "chained"), (128, "chained"), (129, "merged")])
def test_a_square_linear_is_merged_beyond_half_its_width_in_tokens(tokens: int, order: str):
    assert cheaper([Shape(256, 256, 8), Shape(256, 256, 1)], tokens) == order


def test_of_several_linears_the_sums_count():
    wide, narrow = Shape(640, 256, 8), Shape(256, 128, 8)
    assert break_even([wide]) == 640 * 256 // (640 + 256)
    assert break_even([narrow]) < break_even([wide, narrow]) < break_even([wide])
