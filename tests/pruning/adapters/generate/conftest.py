"""Tasks so small that a generator of them is trained in seconds, on a base of the tests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pruning.adapters.generate.recipes import TrainGeneratorRecipe, TrainGeneratorSpec

TASKS = {
    "digits": lambda i: {"prompt": f"{i}:", "completion": f"{i}{i + 1}{i + 2}"},
    "letters": lambda i: {"prompt": "", "completion": chr(97 + i % 26) * 4 + "zz"},
    "marks": lambda i: {"prompt": "?" * (i % 4), "completion": "!?" * (1 + i % 5)},
}
FAMILIES = {
    "rank": 2,
    "alpha": 4,
    "steps": 60,
    "batch": 4,
    "length": 24,
    "learning_rate": 0.02,
    "checkpoints": 3,
    "demonstrations": 24,
    "held_out": 8,
}
NETWORK = {"latent": 4, "width": 48, "steps": 400, "batch": 36}


@pytest.fixture(scope="session")
def lines() -> Callable[[str, int], str]:
    """So many rows of a task, as lines of JSON."""

    def make(task: str, count: int) -> str:
        return "".join(json.dumps(TASKS[task](i)) + "\n" for i in range(count))

    return make


@pytest.fixture(scope="session")
def training(
    dense_base: Callable[[str], Path],
    lines: Callable[[str, int], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., TrainGeneratorSpec]:
    """The training of a generator on all three tasks, with some entries of its recipe changed."""
    folder = tmp_path_factory.mktemp("rows")
    for task in TASKS:
        (folder / task).write_text(lines(task, 40))

    def make(**changes: Any) -> TrainGeneratorSpec:
        tasks = {t: {"file": f"{t}.jsonl", "description": f"It writes {t}."} for t in TASKS}
        recipe = {
            "name": "maker",
            "base": "dense",
            "tasks": tasks,
            "families": FAMILIES,
            "network": NETWORK,
            **changes,
        }
        return TrainGeneratorSpec(
            recipe=TrainGeneratorRecipe.model_validate(recipe),
            base=dense_base("llama"),
            rows={task: folder / task for task in TASKS},
        )

    return make
