"""The training of a generator, killed with SIGKILL at random instants, makes the same bytes."""

import multiprocessing
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pruning.adapters.generate.recipes import TrainGeneratorSpec
from pruning.adapters.jobs import stages_of
from pruning.artifacts import verify
from pruning.digest import tree_digest
from pruning.jobs import stage
from pruning.jobs.kinds import ADAPTERS

FORK = multiprocessing.get_context("fork")


def run(name: str, work: Path, seconds: float | None = None) -> bool:
    """Run a stage in a process, killed after some seconds; whether it came to its end."""

    def say(fraction: float, message: str) -> None:
        with (work / "said").open("a") as said:
            said.write(f"{name}: {message}\n")

    def life() -> None:
        with (work / "said").open("a") as said:
            said.write("a life begins\n")
        stage.run(name, work, ADAPTERS.workflow, ADAPTERS.pipeline, say)

    process = FORK.Process(target=life)
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode == 0


def begun(work: Path, spec: TrainGeneratorSpec) -> Path:
    work.mkdir()
    (work / "spec.json").write_text(spec.model_dump_json())
    return work


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
    kills: int, training: Callable[..., TrainGeneratorSpec], tmp_path: Path
):
    spec = training()
    stages = stages_of(spec.recipe)
    whole, durations = begun(tmp_path / "whole", spec), {}
    for name in stages:
        started = time.monotonic()
        assert run(name, whole)
        durations[name] = time.monotonic() - started
    digest = verify(whole / "publish").digest

    instants, left, jobs = random.Random(0), kills, 0
    while left:
        work, jobs = begun(tmp_path / f"job-{jobs}", spec), jobs + 1
        for name in stages:
            while left and not run(name, work, instants.uniform(0, durations[name])):
                left -= 1
            assert run(name, work)
        assert verify(work / "publish").digest == digest
        assert tree_digest(work / "families") == tree_digest(whole / "families")
        assert repeated(work / "said") <= 8  # the course is saved every seventh or eighth step
    print(f"{kills} kills, {jobs} jobs")
