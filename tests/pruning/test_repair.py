"""Recovery methods in a row, and what is left of them after a kill."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pruning.methods.entry import Params
from pruning.plan import Plan
from pruning.recipe import PruneSpec, Recipe, Text
from pruning.registry import RecoveryContext
from pruning.repair import repair
from pruning.stats import Statistics
from pruning.weights.checkpoint import Checkpoint


def quiet(fraction: float, message: str) -> None:
    return None


@pytest.fixture
def whole(dense_base: Callable[[str], Path], tmp_path: Path) -> RecoveryContext:
    """A context around a "slim base" that is one file."""
    text = Text(file="file-1")
    recipe = Recipe(name="slim", base="dense", target=0.3, calibration=text, evaluation=text)
    base = dense_base("llama")
    spec = PruneSpec(recipe=recipe, base=base, adapters={}, calibration=base, evaluation=base)
    (tmp_path / "slim").mkdir()
    (tmp_path / "slim" / "weights").write_text("cut")
    checkpoint = Checkpoint(base)
    return RecoveryContext(
        spec,
        checkpoint,
        Plan.dense(checkpoint.geometry),
        Statistics(),
        torch.zeros(1, 8, dtype=torch.long),
        source=tmp_path / "slim",
        destination=tmp_path / "repaired",
        state=tmp_path / "state",
    )


class Writer:
    """A method that adds its name to the weights, and may be killed before or after its state."""

    def __init__(self, name: str):
        self.name, self.calls, self.found = name, 0, ""
        self.is_killed = False

    def __call__(self, context: RecoveryContext, params: Any, progress: Any) -> None:
        self.calls += 1
        state = context.state / "half"
        self.found = state.read_text() if state.exists() else ""
        state.write_text(self.name)
        context.destination.mkdir()
        before = (context.source / "weights").read_text()
        (context.destination / "weights").write_text(f"{before}, {self.name}")
        if self.is_killed:
            raise KeyboardInterrupt
        progress(1.0, self.name)


def repaired(context: RecoveryContext, *writers: Writer) -> str:
    repair([(writer, Params()) for writer in writers], context, quiet)
    return (context.destination / "weights").read_text()


def test_methods_run_in_the_order_of_the_recipe_each_on_what_the_last_one_made(
    whole: RecoveryContext,
):
    assert repaired(whole, Writer("refit"), Writer("trained")) == "cut, refit, trained"
    assert (whole.source / "weights").read_text() == "cut"


def test_progress_is_that_of_the_whole(whole: RecoveryContext):
    heard: list[tuple[float, str]] = []
    steps = [(Writer(name), Params()) for name in ("a", "b")]
    repair(steps, whole, lambda fraction, message: heard.append((fraction, message)))
    assert heard == [(0.5, "a"), (1.0, "b")]


def test_after_a_kill_finished_methods_are_not_run_again_and_a_begun_one_finds_its_state(
    whole: RecoveryContext,
):
    first, second = Writer("first"), Writer("second")
    second.is_killed = True
    with pytest.raises(KeyboardInterrupt):
        repaired(whole, first, second)
    second.is_killed = False
    assert repaired(whole, first, second) == "cut, first, second"
    assert (first.calls, second.calls, second.found) == (1, 2, "second")


@pytest.mark.parametrize("changed", ["recipe", "slim base"])
def test_state_of_other_inputs_is_not_taken_up(changed: str, whole: RecoveryContext):
    writer = Writer("w")
    writer.is_killed = True
    with pytest.raises(KeyboardInterrupt):
        repaired(whole, writer)
    writer.is_killed = False
    if changed == "recipe":
        recipe = whole.spec.recipe.model_copy(update={"seed": 1})
        whole = replace(whole, spec=whole.spec.model_copy(update={"recipe": recipe}))
    else:
        (whole.source / "weights").write_text("cut otherwise")
    repaired(whole, writer)
    assert (writer.calls, writer.found) == (2, "")
