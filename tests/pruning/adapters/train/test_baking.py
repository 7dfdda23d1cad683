"""Whatever initialises and forms a training, what is baked answers as what was trained."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pruning import evaluation
from pruning.adapters import algebra, atoms
from pruning.adapters.peft_format import read_adapter
from pruning.adapters.train import job
from pruning.adapters.train.loop import Lesson, fit
from pruning.adapters.train.recipes import Hyperparameters, TrainSpec
from pruning.adapters.train.tuned import Around, Tuned
from pruning.evaluation import Example
from pruning.geometry import Geometry

ALL = {"name": "core", "params": {"train": "all"}}
NYSTROM = {"name": "nystrom", "params": {"tolerance": 0.5}}  # these weights are random
RECIPES: dict[str, dict[str, Any]] = {
    **{name: {"init": name} for name in ("lora", "eva", "lora_ga", "pissa", "olora", "corda")},
    **{f"{name} core": {"init": name, "form": "core"} for name in ("lora_xs", "lora_sb", "pissa")},
    "IntTune": {"init": NYSTROM, "form": "core"},
    "NLoRA": {"init": NYSTROM, "form": ALL},
    "LoLDU": {"init": "loldu", "form": "diagonal"},
    **{name: {"form": name} for name in ("gated", "nested", "nola", "randlora", "growable")},
    **{name: {"hooks": [name]} for name in ("allora", "ggpo", "darex_l2", "group_lasso")},
    **{f"{name} shared": {"ranks": "cfsp", "init": name} for name in ("lora_ga", "lora_sb")},
    "Flexora": {"ranks": "flexora", "init": "eva"},
    "DyLoRA frozen": {"form": {"name": "nested", "params": {"frozen": True}}},
}


def method(named: Any) -> Any:
    return {"name": named} if isinstance(named, str) else named


def recipe(name: str) -> dict[str, Any]:
    given = RECIPES[name]
    found = {kind: method(given[kind]) for kind in ("ranks", "init", "form") if kind in given}
    return found | {"hooks": [method(hook) for hook in given.get("hooks", ())]}


@pytest.mark.parametrize("name", RECIPES)
def test_a_baked_adapter_answers_as_the_trained_factors_do(
    name: str,
    begun: Callable[..., tuple[Tuned, list[Around]]],
    examples: list[Example],
    dense_base: Callable[[str], Path],
    ids: torch.Tensor,
    tmp_path: Path,
):
    base, params = dense_base("llama"), Hyperparameters(steps=3, checks=1, learning_rate=0.003)
    tuned, around = begun(**recipe(name))
    with torch.no_grad():
        first = tuned.model(input_ids=ids).logits
    if RECIPES[name].get("init") not in ("lora_sb", "lora_xs"):  # these begin beside the base
        with torch.no_grad():
            assert torch.allclose(first, evaluation.load(base)(input_ids=ids).logits, atol=1e-4)
    moved = [copy.deepcopy(p.data) for p in tuned.parameters.values()]
    keep = Around()
    keep.keeps_last = True
    lesson = Lesson(examples[8:], examples[:8])
    fit(tuned, [*around, keep], lesson, params, 0, tmp_path, lambda fraction, message: None)
    assert any(not torch.equal(m, p) for m, p in zip(moved, tuned.parameters.values(), strict=True))
    with torch.no_grad():
        trained = tuned.model(input_ids=ids).logits
    geometry, folder = Geometry.of(base), tmp_path / "adapter"
    atoms.write(algebra.adapter_of(tuned.bake()), folder, geometry, "dense")
    read_adapter(folder, geometry)  # what a server checks before it loads one
    with torch.no_grad():
        baked = evaluation.with_adapter(evaluation.load(base), folder)(input_ids=ids).logits
    assert (baked - trained).abs().max() <= 1e-5 * trained.abs().max()
    assert not torch.allclose(baked, first, atol=1e-4)


@pytest.mark.parametrize("family", ["phi3", "qwen3", "gemma2"])
def test_other_families_are_trained_and_baked_alike(
    family: str,
    training: Callable[..., TrainSpec],
    examples: list[Example],
    dense_base: Callable[[str], Path],
    ids: torch.Tensor,
    tmp_path: Path,
):
    recipe = training(init={"name": "pissa"}).recipe
    base = dense_base(family)
    model, geometry = evaluation.load(base), Geometry.of(base)
    starts = job.starts(model, recipe, job.keys_of(recipe, geometry), examples)
    tuned, around = job.attach(model, recipe, starts, 8)
    lesson = Lesson(examples[8:], examples[:8])
    fit(tuned, around, lesson, recipe.hyperparameters, 0, tmp_path, lambda fraction, message: None)
    atoms.write(algebra.adapter_of(tuned.bake()), tmp_path / "adapter", geometry, family)
    with torch.no_grad():
        trained = tuned.model(input_ids=ids).logits
        adapted = evaluation.with_adapter(evaluation.load(base), tmp_path / "adapter")
        baked = adapted(input_ids=ids).logits
    assert (baked - trained).abs().max() <= 1e-5 * trained.abs().max()
