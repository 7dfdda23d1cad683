"""A cached composition: exact where refreshed, predicted between, and never over its budget."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pruning import evaluation
from pruning.adapters.algebra import Bag, Bags
from pruning.adapters.compose.cached import NEVER, Cached, error, intervals
from pruning.adapters.compose.profile import Spread, profile
from pruning.adapters.compose.sums import Exact, Switch, decoded

PROMPT = 8


@pytest.fixture
def model(dense_base: Callable[[str], Path]) -> Any:
    return evaluation.load(dense_base("llama"))


@pytest.fixture
def parts(model: Any) -> list[Bags]:
    """Three adapters of rank 2 on some linears each."""
    generator = torch.manual_seed(3)

    def bag(key: tuple[int, str]) -> Bag:
        layer, linear = key
        block = (
            model.model.layers[layer].mlp
            if "down" in linear
            else model.model.layers[layer].self_attn
        )
        outputs, inputs = getattr(block, linear).weight.shape
        a = torch.randn(2, inputs, generator=generator) / inputs**0.5
        return Bag(a, torch.randn(outputs, 2, generator=generator))

    places = [[(0, "q_proj"), (1, "down_proj")], [(1, "down_proj")], [(2, "o_proj"), (0, "q_proj")]]
    return [{key: bag(key) for key in keys} for keys in places]


@pytest.fixture
def texts(ids: Tensor) -> Tensor:
    return ids[:3, :20]


def test_the_exact_sum_is_what_the_summed_matrices_say(
    model: Any, parts: list[Bags], texts: Tensor
):
    weights = [0.5, -1.0, 2.0]
    found = decoded(model, Exact(parts, weights), texts, PROMPT)
    for bags, weight in zip(parts, weights, strict=True):
        for (layer, linear), bag in bags.items():
            block = model.model.layers[layer]
            owner = block.mlp if "down" in linear else block.self_attn
            getattr(owner, linear).weight.data += weight * bag.delta
    with torch.no_grad():
        expected = model(texts).logits.log_softmax(dim=-1)[:, PROMPT - 1 : -1]
    assert torch.allclose(found, expected, atol=1e-4)


def test_refreshed_at_every_token_it_is_the_exact_sum(model: Any, parts: list[Bags], texts: Tensor):
    weights = [0.5, -1.0, 2.0]
    profiles = [profile(model, bags, texts) for bags in parts]
    cached = decoded(model, Cached(parts, weights, profiles, (1, 1, 1)), texts, PROMPT)
    assert torch.equal(cached, decoded(model, Exact(parts, weights), texts, PROMPT))


def test_between_refreshes_a_part_is_its_mean_and_what_still_correlates_of_the_last_one():
    bag = Bag(torch.eye(2), torch.eye(2))
    spread = Spread(1.0, 1.0, torch.tensor([1.0, 0.5, 0.25, 0.0]), 0.5)
    key = (0, "q_proj")
    cached = Cached([{key: bag}], [2.0], [{key: spread}], (3,))

    def at(step: int, *inputs: float) -> list[float]:
        cached.step = step
        output = cached.one(0, key, torch.tensor(inputs, dtype=torch.float32).view(1, -1, 2))
        assert isinstance(output, Tensor)
        return output[0, -1].tolist()

    assert at(0, 1, 0, 3, 4) == [6, 8]  # doubled; the mean is (4, 4)
    assert at(1, 9, 9) == [4 + 0.5 * (6 - 4), 4 + 0.5 * (8 - 4)]
    assert at(2, 9, 9) == [4 + 0.25 * (6 - 4), 4 + 0.25 * (8 - 4)]
    assert at(3, 0, 1) == [0, 2]
    assert at(4, 9, 9) == [4 + 0.5 * (0 - 4), 4 + 0.5 * (2 - 4)]


def test_a_part_that_is_never_refreshed_fades_to_its_mean():
    bag, key = Bag(torch.eye(1), torch.eye(1)), (0, "q_proj")
    spread = Spread(1.0, 1.0, torch.tensor([1.0, 0.5]), 0.5)
    cached = Cached([{key: bag}], [1.0], [{key: spread}], (NEVER,))
    cached.one(0, key, torch.tensor([[[1.0], [3.0]]]))
    cached.step = 40
    assert float(torch.as_tensor(cached.one(0, key, torch.tensor([[[9.0]]])))) == 2.0


@pytest.mark.parametrize(("whole", "expected"), [(False, [6, 5, 1]), (True, [11, 15, 3])])
def test_by_turns_each_part_answers_alone_after_the_prompt(whole: bool, expected: list[float]):
    key = (0, "q_proj")
    parts = [{key: Bag(torch.eye(1), torch.full((1, 1), value))} for value in (1.0, 5.0)]
    switch = Switch(parts, [1.0, 2.0] if whole else [1.0, 1.0], whole)
    found = []
    for step in range(3):
        switch.step = step
        found.append(float(switch(key, torch.ones(1, 1, 1))))
    assert found == expected


SPREADS = st.builds(
    lambda varying, rho: Spread(0.0, varying, rho ** torch.arange(32.0), 0.0),
    st.floats(0, 10),
    st.floats(0, 0.99),
)


@given(st.lists(st.tuples(SPREADS, st.floats(-2, 2)), min_size=1, max_size=5), st.floats(0, 5))
def test_intervals_keep_to_the_budget_and_leave_no_more_error_than_none(parts, budget):
    profiles = [{(0, "q_proj"): spread} for spread, _ in parts]
    weights = [weight for _, weight in parts]
    chosen = intervals(profiles, weights, budget)
    assert sum(1 / c for c in chosen if c != NEVER) <= budget + 1e-6
    errors = [error(p, w, c) for p, w, c in zip(profiles, weights, chosen, strict=True)]
    nothing = [error(p, w, NEVER) for p, w in zip(profiles, weights, strict=True)]
    assert sum(errors) <= sum(nothing) + 1e-9


def test_refreshes_go_to_what_varies_and_is_heavy():
    white = torch.eye(32)[0]  # correlates with itself alone
    loud = {(0, "q_proj"): Spread(0.0, 4.0, white, 0.0)}
    calm = {(0, "q_proj"): Spread(9.0, 0.1, white, 0.0)}
    assert intervals([calm, loud], [1, 1], 1.0) == (NEVER, 1)
    assert intervals([loud, loud], [0.1, 1], 1.0) == (NEVER, 1)


def test_a_refresh_at_every_token_has_no_error():
    slow = {(0, "q_proj"): Spread(0.0, 1.0, torch.full((32,), 0.5).cumprod(0) * 2, 0.0)}
    assert error(slow, 1.0, 1) == pytest.approx(0)
    assert error(slow, 1.0, 2) < error(slow, 1.0, 4) < error(slow, 1.0, NEVER)
