"""Which sequences of a pool are prototypes, easy or hard."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load
from transformers import AutoModelForCausalLM

from pruning.pipeline import STAGES
from pruning.recipe import PruneSpec, Recipe, Text
from pruning.subset import chosen, difficulties, embeddings
from pruning.text import calibration_ids, load_tokenizer
from pruning.weights.checkpoint import Checkpoint


def quiet(fraction: float, message: str) -> None:
    return None


def turned(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees) * torch.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_difficulty_is_the_distance_to_the_prototype_by_cosine():
    # the centroid of 0°, 60° and 30° points at 30°; that of a single row at itself
    found = difficulties(turned(0, 60, 30, 90), torch.tensor([0, 0, 0, 1]))
    cos30 = 3**0.5 / 2
    torch.testing.assert_close(found, torch.tensor([1 - cos30, 1 - cos30, 0, 0]))


def test_easy_and_hard_are_the_two_ends_and_prototypes_one_of_each_cluster(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("pruning.subset.CLUSTERS", 2)
    points = turned(0, 1, 12, 90, 89, 102)  # two clusters near 4.3° and 93.7°
    assert chosen(points, "easy", 2, 0) == [1, 3]
    assert chosen(points, "hard", 2, 0) == [2, 5]
    assert chosen(points, "prototypes", 2, 0) == [1, 3]


def test_an_embedding_is_the_mean_of_the_last_hidden_states(
    dense_base: Callable[[str], Path], ids: torch.Tensor, tmp_path: Path
):
    model = AutoModelForCausalLM.from_pretrained(dense_base("llama"), dtype=torch.float32).eval()
    states = {}
    model.model.layers[-1].register_forward_hook(lambda m, i, output: states.update(last=output))
    with torch.no_grad():
        model(ids)
    mean = states["last"].mean(dim=1)
    found = embeddings(Checkpoint(dense_base("llama")), ids, tmp_path, quiet)
    torch.testing.assert_close(found, mean / mean.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("select", ["prototypes", "easy", "hard"])
def test_a_job_calibrates_on_what_it_selected_and_does_so_again(
    select: str, dense_base: Callable[[str], Path], tmp_path: Path
):
    (tmp_path / "text").write_text("".join(f"Row {i} has the number {i * i}.\n" for i in range(99)))
    text = {"file": "f", "sequences": 6, "length": 32}
    asked = {"name": "slim", "base": "dense", "target": 0.4, "evaluation": text}
    recipe = Recipe.model_validate({**asked, "calibration": text | {"select": select, "pool": 40}})
    spec = PruneSpec(
        recipe=recipe,
        base=dense_base("llama"),
        adapters={},
        calibration=tmp_path / "text",
        evaluation=tmp_path / "text",
    )
    rows: list[Any] = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for stage in ("calibrate", "plan"):
            STAGES[stage](spec, tmp_path / name, quiet)
        rows.append((tmp_path / name / "calibrate" / "sequences.safetensors").read_bytes())
    assert rows[0] == rows[1]
    tokenizer = load_tokenizer(spec.base)
    pool = calibration_ids(tokenizer, spec.calibration, Text(file="f", sequences=40, length=32), 0)
    selected = load(rows[0])["ids"]
    assert selected.shape == (6, 32)
    assert all((row == pool).all(dim=1).any() for row in selected)


def test_only_calibration_selects():
    text, hard = {"file": "f"}, {"file": "f", "select": "hard"}
    recipe = {"name": "slim", "base": "dense", "target": 0.4, "calibration": hard}
    Recipe.model_validate({**recipe, "evaluation": text})
    for wrong in ({"evaluation": hard}, {"training": hard}, {"fleet": {"texts": {"a": hard}}}):
        with pytest.raises(ValidationError, match="only the calibration text"):
            Recipe.model_validate({**recipe, "evaluation": text, **wrong})
