"""The two allocators that try plans: dynamic programming on sums, and evolution on the loss."""

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pruning.allocation import budget, programming, targets
from pruning.allocation.budget import Space
from pruning.allocation.programming import cheapest
from pruning.allocation.selection import select
from pruning.allocation.spread import settled
from pruning.allocation.trial import Trial
from pruning.allocators import search
from pruning.errors import InvalidInput
from pruning.geometry import Geometry, Layer
from pruning.methods.allocators import SearchParams
from pruning.plan import Widths
from pruning.recipe import Recipe
from pruning.registry import Problem
from pruning.weights.checkpoint import Checkpoint

GEOMETRY = Geometry("llama", 512, 256, 32, True, (Layer(8, 4, 640),) * 6)
TEXT = {"file": "file-1"}


def recipe(name: str, **changes: object) -> Recipe:
    asked = {"name": "slim", "base": "demo", "target": 0.4, "allocator": {"name": name}}
    texts = {"calibration": TEXT, "evaluation": TEXT, "export": "per_layer"}
    return Recipe.model_validate({**asked, **texts, **changes})


def space(asked: Recipe) -> Space:
    return budget.space(GEOMETRY, asked, range(6), range(6))


@given(curves=st.lists(st.lists(st.floats(0, 9), min_size=1, max_size=4), min_size=1, max_size=4))
def test_dynamic_programming_finds_the_least_sum_for_every_number_of_steps(
    curves: list[list[float]],
):
    found = cheapest(dict(enumerate(curves)))
    choices = list(product(*(range(len(curve)) for curve in curves)))
    for steps, (least, taken) in enumerate(found):
        sums = [
            sum(curve[i] for curve, i in zip(curves, choice, strict=True))
            for choice in choices
            if sum(choice) == steps
        ]
        assert least == pytest.approx(min(sums))
        assert sum(taken.values()) == steps
        assert sum(curves[layer][i] for layer, i in taken.items()) == pytest.approx(least)
    assert len(found) == 1 + sum(len(curve) - 1 for curve in curves)


@settings(max_examples=100)
@given(
    target=st.floats(0.05, 0.8), multiple=st.sampled_from([1, 16, 48]), seed=st.integers(0, 10**6)
)
def test_a_mutation_keeps_the_budget_the_floors_and_the_multiples(
    target: float, multiple: int, seed: int
):
    asked = recipe("search", target=target, ffn_multiple=multiple)
    room = space(asked)
    generator = random.Random(seed)
    widths = settled(room, dict.fromkeys(range(6), 2), dict.fromkeys(range(6), 320.0))
    for _ in range(4):
        widths = search.mutated(room, widths, generator) if widths else None
    if widths is None:  # two groups everywhere cannot be part of this target
        return
    costs = targets.costs(GEOMETRY, asked)
    saved = (24 - sum(widths.kv_groups)) * costs.kv_group
    saved += (6 * 640 - sum(widths.ffn_channels)) * costs.ffn_channel
    missed = abs(saved - targets.wanted(GEOMETRY, asked))
    assert missed <= multiple * costs.ffn_channel / 2 + 1
    assert all(1 <= groups <= 4 for groups in widths.kv_groups)
    assert all(64 <= width <= 640 for width in widths.ffn_channels)
    assert all(width % multiple == 0 or width == 640 for width in widths.ffn_channels)


def test_a_round_finds_the_best_widths_where_blocks_add_up_and_no_second_is_better():
    room = space(recipe("search", units=["ffn_channel"]))

    def loss(widths: Widths, sequences: int) -> float:
        return sum((i + 1) * (640 - width) ** 2.0 for i, width in enumerate(widths.ffn_channels))

    told: list[float] = []
    params = SearchParams(rounds=5, levels=40)
    found = list(search.approach(room, loss, params, lambda stage, message: told.append(stage)))
    assert told == sorted(told)
    assert len(told) == 24  # one of each block and round
    assert len(found) == 2  # the second does not lower the loss
    assert found[0] == found[1]
    generator = random.Random(0)
    others = {search.mutated(room, found[0], generator) for _ in range(200)}
    assert len(others) > 20
    assert all(loss(found[0], 1) <= loss(other, 1) for other in others)


def test_rounds_follow_what_other_blocks_have_lost():
    room = space(recipe("search", units=["ffn_channel"]))

    def loss(widths: Widths, sequences: int) -> float:  # of what neighbours lose together
        lost = [1 - width / 640 for width in widths.ffn_channels]
        return sum(lost[i] ** 2 + 40 * lost[i] * lost[i + 1] for i in range(5)) + lost[5] ** 2

    params = SearchParams(rounds=6, levels=8)
    first, *later = search.approach(room, loss, params, lambda stage, message: None)
    assert min(loss(widths, 1) for widths in later) < loss(first, 1)


def test_evolution_nears_the_widths_of_least_loss_and_never_turns_back():
    room = space(recipe("search", units=["ffn_channel"]))

    def loss(widths: Widths, sequences: int) -> float:
        return float(sum(i * width for i, width in enumerate(widths.ffn_channels)))

    first = settled(room, dict.fromkeys(range(6), 4), dict.fromkeys(range(6), 400.0))
    assert first is not None
    params = SearchParams(generations=60, offspring=8, sequences=16)
    fittest = list(search.evolve(room, [first], loss, params, random.Random(0)))
    losses = [loss(widths, 16) for widths in fittest]
    assert len(losses) == 61
    assert losses == sorted(losses, reverse=True)
    best, worst = fittest[-1].ffn_channels[0], fittest[-1].ffn_channels[-1]
    assert best == 640  # the first layers cost nothing
    assert worst == 64


def test_selection_asks_for_more_and_more_text():
    room = space(recipe("search"))
    asked: list[int] = []

    def loss(widths: Widths, sequences: int) -> float:
        asked.append(sequences)
        return float(len(asked))

    first = settled(room, dict.fromkeys(range(6), 2), dict.fromkeys(range(6), 400.0))
    assert first is not None
    params = SearchParams(generations=1, offspring=6, sequences=32)
    list(search.evolve(room, [first], loss, params, random.Random(1)))
    assert asked[:2] == [32, 32]  # the parent
    later = asked[2:]
    assert later == sorted(later)
    assert set(later) == {2, 8, 32}
    assert later.count(32) == 2


@pytest.mark.parametrize("name", ["search", "rate_distortion"])
def test_a_base_that_memory_cannot_hold_is_refused_at_once(name: str):
    asked = recipe(name, allocator={"name": name, "params": {"memory_gib": 0.001}})
    with pytest.raises(InvalidInput, match="holds the whole base in memory") as refused:
        budget.check(GEOMETRY, asked)
    assert refused.value.field == "allocator.params.memory_gib"


@pytest.mark.parametrize("name", ["search", "rate_distortion"])
@pytest.mark.parametrize("target", [0.15, 0.37, 0.55])
def test_widths_tried_on_a_real_base_meet_the_target_and_search_is_never_worse_than_uniform(
    name: str,
    target: float,
    dense_base: Callable[[str], Path],
    make_problem: Callable[..., Problem],
    allocate: Callable[[Problem], Widths],
    ids: Tensor,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(programming, "_MOST_WIDTHS", 8)  # of 44
    checkpoint = Checkpoint(dense_base("llama"))
    params = {"search": {"generations": 2, "offspring": 4, "sequences": 5}}
    asked = recipe(
        name,
        target=target,
        ffn_multiple=1,
        allocator={"name": name, "params": params.get(name, {})},
        floors={"layers": {"3": {"kv_groups": 2}}},
    )
    problem = make_problem(checkpoint.geometry, asked)
    problem = replace(problem, checkpoint=checkpoint, calibration=lambda: ids)
    widths = allocate(problem)
    assert allocate(problem) == widths
    costs = targets.costs(checkpoint.geometry, asked)
    saved = (16 - sum(widths.kv_groups)) * costs.kv_group
    saved += (4 * 48 - sum(widths.ffn_channels)) * costs.ffn_channel
    assert abs(saved - targets.wanted(checkpoint.geometry, asked)) <= costs.ffn_channel / 2 + 1
    assert min(widths.kv_groups) >= 1
    assert widths.kv_groups[3] >= 2
    assert min(widths.ffn_channels) >= 5
    uniform = recipe("uniform", target=target, ffn_multiple=1, floors=asked.floors)
    even = allocate(replace(problem, recipe=uniform))
    tried = Trial(checkpoint, ids, problem.statistics)
    if name == "search":
        losses = [tried.loss(select(problem.scores, w, False), 5) for w in (widths, even)]
        assert losses[0] <= losses[1]
