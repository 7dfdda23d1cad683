"""How deep each cut of a schedule goes."""

import pytest

from pruning.recipe import Method
from pruning.registry import schedule


def targets(name: str, target: float, **params: float) -> list[float]:
    function, _, bound = schedule(Method(name=name, params=params))
    return function(target, bound)


def test_one_shot_is_one_cut():
    assert targets("one_shot", 0.3) == [0.3]


@pytest.mark.parametrize(
    ("target", "step", "expected"),
    [
        (0.3, 0.1, [0.1, 0.2, 0.3]),
        (0.3, 0.05, [0.05, 0.1, 0.15, 0.2, 0.25, 0.3]),
        (0.25, 0.1, [0.25 / 3, 0.5 / 3, 0.25]),
        (0.04, 0.05, [0.04]),
    ],
)
def test_interleaved_cuts_are_even_and_no_larger_than_a_step(
    target: float, step: float, expected: list[float]
):
    assert targets("interleaved", target, step=step) == pytest.approx(expected)


def test_cubic_cuts_grow_smaller():
    # 1 − (1 − i/4)³ of a half: 37/64, 56/64, 63/64, all of it
    assert targets("cubic", 0.5, cuts=4) == pytest.approx([37 / 128, 56 / 128, 63 / 128, 0.5])


@pytest.mark.parametrize("name", ["one_shot", "interleaved", "cubic", "soft_shrink", "until_stop"])
@pytest.mark.parametrize("target", [0.01, 0.3, 0.77])
def test_the_last_target_is_that_of_the_recipe_to_the_bit(name: str, target: float):
    assert targets(name, target)[-1] == target
