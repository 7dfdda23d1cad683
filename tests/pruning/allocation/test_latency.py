"""A latency is planned for by measured times: lines through them, and refusals in milliseconds."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.allocation import budget, targets
from pruning.allocation.latency import LatencyTable, levels, line
from pruning.errors import InvalidInput
from pruning.geometry import Geometry, Layer
from pruning.plan import Widths
from pruning.recipe import Recipe
from pruning.registry import Problem

GEOMETRY = Geometry("llama", 4096, 256, 32, True, (Layer(8, 4, 640),) * 6)
TABLE = {
    "attention": {1: 0.3, 2: 0.4, 4: 0.6},  # 0.2 and 0.1 for each group
    "mlp": {160: 0.42, 640: 0.9},  # 0.26 and 0.001 for each channel
    "rest": 1.0,
}  # of the dense base: 1 + 6 · (0.6 + 0.9) = 10 ms


def recipe(latency_ms: float, **changes: Any) -> Recipe:
    text = {"file": "f"}
    size = {"latency_ms": latency_ms, "table": TABLE}
    asked = {"name": "slim", "base": "demo", "size": size, "calibration": text, "evaluation": text}
    return Recipe.model_validate({**asked, "export": "per_layer", **changes})


def predicted(widths: Widths) -> float:
    return LatencyTable.model_validate(TABLE).predicted(widths)


def test_a_line_goes_through_the_times():
    assert line({1: 0.3, 2: 0.4, 4: 0.6}) == pytest.approx((0.2, 0.1))


@pytest.mark.parametrize("times", [{1: 0.5, 4: 0.5}, {1: 0.9, 4: 0.5}])
def test_noise_makes_no_unit_worthless(times: dict[int, float]):
    _, slope = line(times)
    assert slope > 0


def test_a_line_does_not_begin_below_zero():
    # 0.1 ms at one group and 1 ms at four would begin at -0.2: through zero, 1.1 / 5 a group
    assert line({1: 0.1, 4: 1.0}) == pytest.approx((0, 0.22))


def test_levels_are_spread_over_the_widths():
    assert levels(range(1, 101), 3) == [1, 51, 100]
    assert levels([4, 2, 1], 6) == [1, 2, 4]


def test_a_prediction_adds_up_blocks_between_measured_widths():
    widths = Widths((4, 3, 0), (640, 400, 0))
    # 1 + (0.6 + 0.5) + (0.9 + 0.66): the third layer has neither block
    assert predicted(widths) == pytest.approx(3.66)


@settings(max_examples=100)
@given(part=st.floats(0.02, 0.98), name=st.sampled_from(["uniform", "global", "linear"]))
def test_a_plan_meets_a_latency_to_a_step_of_one_layer(
    make_problem: Callable[..., Problem],
    allocate: Callable[[Problem], Widths],
    part: float,
    name: str,
):
    slowest, fastest = 10.0, 10 - 6 * (0.3 + 0.576)  # one group and 64 of 640 channels stay
    asked = slowest - part * (slowest - fastest)
    found = allocate(make_problem(GEOMETRY, recipe(asked, allocator={"name": name})))
    assert abs(predicted(found) - asked) <= 0.016 / 2 + 1e-9


def test_what_no_plan_reaches_is_refused_in_milliseconds():
    # 1 + 6 · (0.3 + 0.324) is the least
    with pytest.raises(
        InvalidInput, match=r"smallest reachable size is 4\.744 latency_ms"
    ) as found:
        budget.check(GEOMETRY, recipe(4.7))
    assert found.value.field == "size.latency_ms"
    budget.check(GEOMETRY, recipe(4.744))
    with pytest.raises(InvalidInput, match="at most 10"):
        budget.check(GEOMETRY, recipe(10.1))


def test_without_times_nothing_is_refused_before_they_are_measured():
    asked = recipe(0.001)
    assert asked.size is not None
    unmeasured = asked.size.model_copy(update={"table": None})
    budget.check(GEOMETRY, asked.model_copy(update={"size": unmeasured}))


def test_a_latency_is_reached_in_one_cut():
    with pytest.raises(InvalidInput, match="choose one_shot"):
        budget.check(GEOMETRY, recipe(7, schedule={"name": "cubic"}))


def test_costs_are_in_nanoseconds():
    found = targets.costs(GEOMETRY, recipe(7))
    assert found.kv_group == pytest.approx(0.1e6)
    assert found.ffn_channel == pytest.approx(1000)
    assert found.base == pytest.approx(10e6)
    assert targets.wanted(GEOMETRY, recipe(7)) == pytest.approx(3e6)
