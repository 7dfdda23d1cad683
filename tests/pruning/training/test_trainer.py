"""The training loop on losses simple enough to know what it must do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pruning.errors import InvalidInput
from pruning.methods.recovery import TrainingParams
from pruning.training.data import Split, drawn, micro_batches, split
from pruning.training.trainer import Outcome, rate_factor, train

Parameters = dict[str, torch.nn.Parameter]


def quiet(fraction: float, message: str) -> None:
    return None


@pytest.fixture
def weight() -> Parameters:
    return {"w": torch.nn.Parameter(torch.zeros(5))}


@pytest.fixture
def run(weight: Parameters, tmp_path: Path) -> Callable[..., Outcome]:
    """Train `weight` on a loss; sequences of 8 tokens, 20 to train on and 2 held out."""

    def run(loss: Callable[[Tensor], Tensor], state: Path = tmp_path, **params: Any) -> Outcome:
        asked = TrainingParams(**{"tokens": 400, "batch": 3, "learning_rate": 0.1, **params})
        training_ST = torch.full((20, 8), 10) + torch.arange(20)[:, None] % 3
        data = Split(training_ST, torch.full((2, 8), 3))
        return train(weight, loss, data, asked, 0, state, quiet)

    return run


@pytest.fixture
def distance(weight: Parameters) -> Callable[[Tensor], Tensor]:
    """How far the weight is from the mean of the ids: least at 11 in training, at 3 held out."""
    return lambda ids: (weight["w"] - ids.float().mean()).square().mean()


def test_the_budget_of_tokens_is_kept_in_whole_sequences(
    run: Callable[..., Outcome], weight: Parameters
):
    seen = []

    def loss(ids: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            seen.append(ids.numel())
        return weight["w"].sum()

    outcome = run(loss, tokens=95)  # 11 sequences of 8 tokens; the last batch has two of them
    assert seen == [24, 24, 24, 16]
    assert (outcome.tokens, outcome.steps) == (88, 4)


def test_a_budget_of_less_than_a_sequence_is_refused(run: Callable[..., Outcome], distance: Any):
    with pytest.raises(InvalidInput, match="give 8 or more") as refused:
        run(distance, tokens=7)
    assert refused.value.field == "recovery.params.tokens"


def test_the_rate_rises_to_its_highest_and_falls_to_almost_nothing():
    rates = [rate_factor(step, 10, 0.2) for step in range(10)]
    assert rates == [0.5, 1.0, *(i / 8 for i in range(8, 0, -1))]
    assert [rate_factor(step, 4, 0.0) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_the_weights_that_did_best_on_held_out_text_are_the_ones_that_remain(
    run: Callable[..., Outcome], distance: Any, weight: Parameters
):
    outcome = run(distance, tokens=4000, learning_rate=0.2, checks=100, patience=100)
    assert outcome.loss_before == pytest.approx(9.0)
    assert outcome.loss_after < 0.05
    assert weight["w"].tolist() == pytest.approx([3.0] * 5, abs=0.2)
    assert outcome.steps == 167  # it went on, past 3 and towards 11


def test_training_stops_early_when_held_out_text_gains_nothing(
    run: Callable[..., Outcome], weight: Parameters
):
    def worse_the_more_it_learns(ids: Tensor) -> Tensor:
        return weight["w"].sum() if torch.is_grad_enabled() else -weight["w"].sum()

    outcome = run(worse_the_more_it_learns, tokens=4000, checks=20, patience=3)
    assert outcome.steps == 27  # 167 steps, a check every 9
    assert weight["w"].tolist() == [0.0] * 5
    assert outcome.loss_after == outcome.loss_before


def test_a_batch_in_pieces_has_the_gradient_of_the_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pruning.training.data.MICRO_TOKENS", 20)
    batch = torch.arange(40).view(5, 8)
    pieces = list(micro_batches(batch))
    assert [(len(ids), share) for ids, share in pieces] == [(2, 0.4), (2, 0.4), (1, 0.2)]
    whole = batch.float().mean()
    assert sum(share * ids.float().mean() for ids, share in pieces) == pytest.approx(float(whole))


@pytest.mark.parametrize("killed_at", [1, 5, 6, 17, 29])
def test_killed_and_run_again_the_weights_are_those_of_an_undisturbed_run(
    killed_at: int, run: Callable[..., Outcome], distance: Any, weight: Parameters, tmp_path: Path
):
    (tmp_path / "undisturbed").mkdir()
    expected = run(distance, tmp_path / "undisturbed", tokens=720, checks=6)
    trained = weight["w"].detach().clone()
    calls = 0

    def deadly(ids: Tensor) -> Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        if calls > killed_at:
            raise KeyboardInterrupt
        return distance(ids)

    weight["w"].data.zero_()
    (tmp_path / "killed").mkdir()
    with pytest.raises(KeyboardInterrupt):
        run(deadly, tmp_path / "killed", tokens=720, checks=6)
    weight["w"].data.zero_()
    assert run(distance, tmp_path / "killed", tokens=720, checks=6) == expected
    assert torch.equal(weight["w"], trained)


def test_held_out_sequences_are_none_of_those_trained_on():
    ids_ST = torch.arange(40)[:, None].repeat(1, 4)
    cut = split(ids_ST, 0.1, seed=3)
    assert (len(cut.training_ST), len(cut.held_out_ST)) == (36, 4)
    assert sorted([*cut.training_ST[:, 0].tolist(), *cut.held_out_ST[:, 0].tolist()]) == [
        *range(40)
    ]
    assert torch.equal(split(ids_ST, 0.1, seed=3).held_out_ST, cut.held_out_ST)
    assert not torch.equal(split(ids_ST, 0.1, seed=4).held_out_ST, cut.held_out_ST)


@pytest.mark.parametrize(("held_out", "count"), [(0.0001, 1), (0.9999, 2)])
def test_something_is_held_out_and_something_is_left(held_out: float, count: int):
    assert len(split(torch.zeros(3, 4), held_out, 0).held_out_ST) == count


def test_sequences_come_in_whole_passes_each_in_another_order():
    order = drawn(5, 12, seed=1)
    first, second, rest = order[:5], order[5:10], order[10:]
    assert sorted(first) == sorted(second) == [*range(5)]
    assert first != second
    assert len(rest) == 2
    assert order == drawn(5, 12, seed=1)
