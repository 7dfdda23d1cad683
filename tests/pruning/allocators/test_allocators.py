"""Widths, against numbers small enough to check by hand."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pruning.allocation import budget
from pruning.allocation.spread import proportional, settled, shifted
from pruning.allocators import erk, outlier, pq_index
from pruning.architectures.llama import LINEARS
from pruning.geometry import Geometry, Layer
from pruning.methods.allocators import PqIndexParams
from pruning.plan import Widths
from pruning.recipe import Recipe
from pruning.registry import LayerScores, Problem
from pruning.statistics.gradients import Saliency
from pruning.statistics.influence import WHOLE, Influence

# four layers of ten FFN channels, 24 parameters each; two KV groups, 64 parameters each
GEOMETRY = Geometry("llama", 8, 8, 2, True, (Layer(2, 2, 10),) * 4)
CHANNELS = {layer: tuple(range(10, 0, -1)) for layer in range(4)}


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def recipe(name: str, channels_out: int, **changes: Any) -> Recipe:
    text = {"file": "file-1"}
    asked = {
        "name": "slim",
        "base": "demo",
        "target": channels_out * 24 / GEOMETRY.body_parameters,
        "allocator": {"name": name, "params": changes.pop("params", {})},
        "units": ["ffn_channel"],
        "ffn_multiple": 1,
        "export": "per_layer",
        "calibration": text,
        "evaluation": text,
    }
    return Recipe.model_validate(asked | changes)


@pytest.fixture
def channels(
    make_problem: Callable[..., Problem], allocate: Callable[[Problem], Widths]
) -> Callable[..., list[int]]:
    """How many channels each layer keeps when so many of the 40 leave."""

    def run(name: str, out: int, statistics: dict[str, Any], **changes: Any) -> list[int]:
        problem = make_problem(GEOMETRY, recipe(name, out, **changes))
        given = replace(problem.statistics, **statistics)
        return list(allocate(replace(problem, statistics=given)).ffn_channels)

    return run


def test_what_is_shared_out_in_proportion_stops_at_floors_and_dense_widths():
    # 8 : 4 : 2 : 1 of 20 would be 10.67, 5.33, 2.67, 1.33; the first stays at 10, the others
    # share 10 as 5.71, 2.86, 1.43: rounded down 5, 2, 1, the two left go to .86 and .71
    weights = {0: 8.0, 1: 4.0, 2: 2.0, 3: 1.0}
    assert proportional(CHANNELS, 20, weights) == {0: 10, 1: 6, 2: 3, 3: 1}


def test_a_layer_of_no_weight_keeps_its_floor_while_others_have_room():
    assert proportional(CHANNELS, 31, {0: 1, 1: 1, 2: 1, 3: 0}) == {0: 10, 1: 10, 2: 10, 3: 1}
    assert proportional(CHANNELS, 33, {0: 1, 1: 1, 2: 1, 3: 0}) == {0: 10, 1: 10, 2: 10, 3: 3}


def test_shifted_fractions_keep_their_distance():
    assert shifted(CHANNELS, 20, {0: 0.2, 1: 0.0, 2: 0.0, 3: -0.2}) == {0: 7, 1: 5, 2: 5, 3: 3}


def test_a_remainder_goes_to_the_earlier_layers():
    assert shifted(CHANNELS, 22, dict.fromkeys(CHANNELS, 0.0)) == {0: 6, 1: 6, 2: 5, 3: 5}


def influence(angles: list[float], cosines: list[float]) -> dict[str, Any]:
    pairs = enumerate(zip(angles, cosines, strict=True))
    return {
        "influence": {(i, WHOLE): Influence(1, numbers(c)[0], numbers(a)[0]) for i, (a, c) in pairs}
    }


def test_sigmoid_keeps_by_the_logistic_of_the_angle_above_the_mean(channels: Any):
    # mean .25; with a = ln 3 / .25 the sigmoids are 3/4 for .5 and 1/4 for 0
    found = influence([0.5, 0.5, 0.0, 0.0], [0.0] * 4)
    assert channels("sigmoid", 24, found, params={"a": 4.394449154672439}) == [6, 6, 2, 2]
    assert channels("sigmoid", 24, found, params={"a": 0}) == [4, 4, 4, 4]


def test_linear_moves_fractions_by_the_centred_and_scaled_importance(channels: Any):
    # −cosine centred: .2, 0, 0, −.2, scaled to 1, 0, 0, −1
    found = influence([0.0] * 4, [0.5, 0.7, 0.7, 0.9])
    assert channels("linear", 20, found, params={"amplitude": 0.3}) == [8, 5, 5, 2]
    assert channels("linear", 20, influence([0.0] * 4, [0.7] * 4)) == [5, 5, 5, 5]


def test_proportional_shares_by_saliency_and_leaves_a_fifth_of_every_layer(channels: Any):
    def saliency(layer: int, linear: str) -> Saliency:
        sums = numbers((6.0, 3.0, 1.0, 0.0)[layer])
        return Saliency(sums, sums)

    found = {(i, linear): saliency(i, linear) for i in range(4) for linear in LINEARS}
    # 20 − 2 − 2 for the last two; 16 would be 10.67 to 5.33: the first is full
    assert channels("proportional", 20, {"saliency": found}) == [10, 6, 2, 2]


def test_erk_keeps_attention_denser_than_the_ffn():
    shapes = Geometry("llama", 512, 256, 32, True, (Layer(8, 4, 640),))
    assert erk.density(shapes, LINEARS[:4]) == 1792 / 196608
    assert erk.density(shapes, LINEARS[4:]) == 3 * 896 / (3 * 640 * 256)


def test_erk_splits_the_target_by_those_densities(
    make_problem: Callable[..., Problem], allocate: Callable[[Problem], Widths]
):
    layers = (Layer(8, 4, 640),) * 8
    shapes = Geometry("llama", 512, 256, 32, True, layers)
    target = 0.5 * 8 * (196608 + 640 * 768) / shapes.body_parameters
    asked = recipe("erk", 0, target=target, units=["ffn_channel", "kv_group"])
    # ε · (1792 + 2688) · 8 = half of all: densities .70 of attention and .42 of the FFN
    widths = allocate(make_problem(shapes, asked))
    assert sum(widths.kv_groups) == 22  # of 32: .7 is 22.4
    # half of all, 2752512, less 22 groups of 49152, is 2176 channels of 768
    assert set(widths.ffn_channels) == {272}


def test_the_pq_index_proposes_to_keep_what_even_scores_would_need():
    params = PqIndexParams()
    assert pq_index.proposed(numbers(2, 2, 2, 2), params) == pytest.approx(0, abs=1e-12)
    # p = 1/2: (Σ√s / 4)² / (Σs / 4) = (4 / 4)² / (16 / 4) = 1/4 of the units
    assert pq_index.proposed(numbers(16, 0, 0, 0), params) == 0.75
    assert pq_index.proposed(numbers(16, 0, 0, 0), PqIndexParams(eta=1)) == 0.9  # β; 1 − 1/16
    assert pq_index.proposed(numbers(0, 0, 0, 0), params) == 0


def test_pq_index_takes_from_layers_in_proportion_to_what_it_proposes(
    make_problem: Callable[..., Problem], allocate: Callable[[Problem], Widths]
):
    even, half = numbers(*[1] * 10), numbers(*[1] * 5, *[0] * 5)  # proposed: 0 and 1/2
    quarter = numbers(*[1] * 5, *[0] * 15)[torch.arange(0, 20, 2)]  # three of ten: .7
    scores = [LayerScores(numbers(1, 1), s) for s in (even, half, quarter, even)]
    problem = make_problem(GEOMETRY, recipe("pq_index", 12), scores=scores)
    assert list(allocate(problem).ffn_channels) == [10, 5, 3, 10]


def test_an_outlier_is_more_than_m_times_the_mean():
    importance = torch.ones(10, 10)
    importance[0, :2] = 100  # mean 2.98
    assert outlier.count(importance, 5) == 2
    assert outlier.count(importance, 50) == 0


def test_standardized_weighs_groups_and_channels_in_one_ranking(
    make_problem: Callable[..., Problem], allocate: Callable[[Problem], Widths]
):
    # z of the groups: ∓1; of the channels: nine at −1/3, one at 3
    scores = [LayerScores(numbers(1, 9), numbers(*[1.0] * 9, 5.0))] * 4
    target = (2 * 64 + 3 * 24) / GEOMETRY.body_parameters
    both = recipe("standardized", 0, target=target, units=["ffn_channel", "kv_group"])
    widths = allocate(make_problem(GEOMETRY, both, scores=scores))
    # the lowest four groups alone, of 64, would save 256 of the 200 asked for: the ranking ends
    # within them, and three groups leave the FFN 8 to save, nearest to no channel at all
    assert sum(widths.kv_groups) == 8 - 3
    assert sum(widths.ffn_channels) == 40


def test_global_takes_from_the_layer_that_scores_lowest_down_to_its_floor(
    make_problem: Callable[..., Problem], allocate: Callable[[Problem], Widths]
):
    low, high = (
        LayerScores(numbers(1, 1), numbers(*[0.1] * 10)),
        LayerScores(numbers(1, 1), numbers(*range(1, 11))),
    )
    problem = make_problem(GEOMETRY, recipe("global", 12), scores=[high, high, low, high])
    assert list(allocate(problem).ffn_channels) == [9, 9, 1, 9]


def test_scores_that_are_not_comparable_are_standardised_before_ranking(
    make_problem: Callable[..., Problem], allocate: Callable[[Problem], Widths]
):
    problem = make_problem(GEOMETRY, recipe("global", 12))
    scaled = [*problem.scores[:2], *problem.scores[2:]]
    scaled[2] = LayerScores(scaled[2].kv_group / 1e6, scaled[2].ffn_channel / 1e6)
    apart = replace(problem, comparable=False)
    assert allocate(replace(apart, scores=scaled)) == allocate(apart)
    assert allocate(replace(problem, scores=scaled)) != allocate(problem)
    never = recipe("global", 12, params={"normalize": "none"})
    assert allocate(replace(apart, recipe=never, scores=scaled)) == allocate(
        replace(problem, scores=scaled)
    )


def test_widths_that_have_been_moved_settle_on_the_budget():
    asked = recipe("search", 20, units=["ffn_channel", "kv_group"])
    space = budget.space(GEOMETRY, asked, range(4), range(4))
    # one group of 64 leaves 416 of the 480 to the FFN: 17.33 channels, so 17
    found = settled(space, {0: 1, 1: 2, 2: 2, 3: 2}, {0: 4.0, 1: 6.0, 2: 6.0, 3: 6.0})
    assert found == Widths((1, 2, 2, 2), (5, 6, 6, 6))
    assert settled(space, {0: 0, 1: 2, 2: 2, 3: 2}, dict.fromkeys(range(4), 5.0)) is None
