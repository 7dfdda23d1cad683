"""Trainings so small that they take a blink, on a base of the tests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pruning import evaluation
from pruning.adapters.merging import seed_of
from pruning.adapters.train import job
from pruning.adapters.train.recipes import TrainRecipe, TrainSpec
from pruning.adapters.train.starts import Start, Starts, kaiming
from pruning.adapters.train.tuned import Around, Tuned
from pruning.evaluation import Example
from pruning.geometry import Geometry
from pruning.text import load_tokenizer

HYPER = {"steps": 8, "batch_size": 4, "length": 32, "learning_rate": 0.02, "checks": 2}
LETTERS = "abcdefgh"


def lines(letters: str) -> str:
    rows = [{"prompt": f"{a}{b}:", "completion": f"{b}{a}{b}{a}"} for a in letters for b in letters]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="session")
def rows_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A file of rows that are made of some letters."""
    folder = tmp_path_factory.mktemp("rows")

    def write(letters: str) -> Path:
        (folder / f"{letters}.jsonl").write_text(lines(letters))
        return folder / f"{letters}.jsonl"

    return write


@pytest.fixture
def training(
    dense_base: Callable[[str], Path], rows_of: Callable[[str], Path]
) -> Callable[..., TrainSpec]:
    """A training on the tiny Llama, with some entries of its recipe changed."""

    def make(**changes: Any) -> TrainSpec:
        recipe = {
            "name": "made",
            "base": "dense",
            "training": {"file": "rows.jsonl"},
            "rank": 4,
            "hooks": [],
            "hyperparameters": HYPER | changes.pop("hyperparameters", {}),
            **changes,
        }
        asked = TrainRecipe.model_validate(recipe)
        return TrainSpec(
            recipe=asked,
            base=dense_base("llama"),
            training=rows_of(LETTERS),
            forget=rows_of("xyz") if asked.forget else None,
        )

    return make


@pytest.fixture
def examples(dense_base: Callable[[str], Path], rows_of: Callable[[str], Path]) -> list[Example]:
    """The rows, in the tokens of the tiny Llama."""
    tokenizer = load_tokenizer(dense_base("llama"))
    return evaluation.rows(tokenizer, rows_of(LETTERS), 32, "training")


@pytest.fixture
def begun(
    training: Callable[..., TrainSpec], examples: list[Example]
) -> Callable[..., tuple[Tuned, list[Around]]]:
    """The tiny Llama with the factors, form and hooks of a recipe, before the first step."""

    def make(**changes: Any) -> tuple[Tuned, list[Around]]:
        spec = training(**changes)
        model = evaluation.load(spec.base)
        keys = job.keys_of(spec.recipe, Geometry.of(spec.base))
        starts = job.starts(model, spec.recipe, keys, examples)
        return job.attach(model, spec.recipe, starts, spec.recipe.hyperparameters.num_steps(64))

    return make


@pytest.fixture
def tiny() -> Callable[..., Starts]:
    """A start for one linear of the tiny Llama, all ranks alike."""

    def make(rank: int = 2, seed: int = 0) -> Starts:
        generator = torch.Generator().manual_seed(seed_of(seed, (0, "q_proj")))
        start = Start(kaiming(rank, 32, generator), torch.zeros(32, rank))
        return Starts({(0, "q_proj"): start}, 1.0)

    return make
