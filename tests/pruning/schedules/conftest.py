"""A recipe that trains a little, and stages run one after the other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pruning.pipeline import STAGES
from pruning.recipe import PruneSpec, Recipe

DISTILL = {"tokens": 1536, "batch": 4, "learning_rate": 0.003, "checks": 2}


@pytest.fixture
def asked(dense_base: Callable[[str], Path], tmp_path: Path) -> Callable[..., PruneSpec]:
    """A job of the recipe with some fields changed, among them the target and the schedule."""
    (tmp_path / "text").write_text("".join(f"Row {i} has the number {i * i}.\n" for i in range(60)))

    def make(**changes: Any) -> PruneSpec:
        text = {"file": "f", "sequences": 6, "length": 32}
        recipe = {
            "name": "slim",
            "base": "dense",
            "ffn_multiple": 1,
            "criterion": {"name": "magnitude"},
            "recovery": [{"name": "distill", "params": DISTILL}],
            "calibration": text,
            "evaluation": text,
        }
        path, base = tmp_path / "text", dense_base("llama")
        return PruneSpec(
            recipe=Recipe.model_validate(recipe | changes),
            base=base,
            adapters={},
            calibration=path,
            evaluation=path,
        )

    return make


@pytest.fixture
def run() -> Callable[..., Path]:
    """Run the named stages of a job, or all of them, in a directory; the directory."""

    def run(spec: PruneSpec, work: Path, *stages: str) -> Path:
        work.mkdir(exist_ok=True)
        for stage in stages or STAGES:
            STAGES[stage](spec, work, lambda fraction, message: None)
        return work

    return run
