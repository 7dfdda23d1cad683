"""The training of a generator, killed with SIGKILL at random instants, makes the same bytes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pruning.adapters.generate.recipes import TrainGeneratorSpec
from pruning.adapters.jobs import stages_of
from pruning.artifacts import verify
from pruning.digest import tree_digest
from pruning.jobs.kinds import ADAPTERS


def repeated(said: Path) -> int:
    """The most steps of families that any life took which an earlier one had taken."""
    earlier: set[str] = set()
    most = 0
    for life in said.read_text().split("a life begins\n"):
        steps = {line for line in life.splitlines() if line.startswith("families: ")}
        most = max(most, len(steps & earlier))
        earlier |= steps
    return most


@pytest.mark.parametrize("kills", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_at_random_a_training_makes_the_same_bytes_and_repeats_few_steps(
    kills: int, training: Callable[..., TrainGeneratorSpec], mortal: Callable[..., Any]
):
    spec = training()
    jobs = mortal(ADAPTERS, spec, stages_of(spec.recipe))
    whole, durations = jobs.undisturbed()
    digest = verify(whole / "publish").digest
    for work in jobs.killed(kills, durations):
        assert verify(work / "publish").digest == digest
        assert tree_digest(work / "families") == tree_digest(whole / "families")
        assert repeated(work / "said") <= 8  # the course is saved every seventh or eighth step
