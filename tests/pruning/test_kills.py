"""Stages that are stopped in the middle, in process: the same bytes, and one layer done twice."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from pruning.architectures.llama import LINEARS
from pruning.digest import tree_digest
from pruning.pipeline import STAGES
from pruning.recipe import PruneSpec, Recipe

TEXT = "".join(f"Sentence {i} is about the number {i * i}.\n" for i in range(60))
ROWS = "".join(f'{{"prompt": "{i} and {i} is", "completion": " {2 * i}."}}\n' for i in range(20))
ORDER = ("calibrate", "plan", "slice", "recover", "carry")


@pytest.fixture(scope="module")
def adapter(dense_base: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(dense_base("llama"), dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=list(LINEARS)))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn_like(parameter)
    directory = tmp_path_factory.mktemp("adapter")
    adapted.save_pretrained(directory)
    (directory / "calibration.jsonl").write_text(ROWS)
    return directory


@pytest.fixture(scope="module")
def spec(
    dense_base: Callable[[str], Path], adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> PruneSpec:
    text = tmp_path_factory.mktemp("text") / "text"
    text.write_text(TEXT)
    recipe = {
        "name": "slim",
        "base": "dense",
        "target": 0.3,
        "ffn_multiple": 4,
        "criterion": {"name": "obs"},
        "recovery": [
            {
                "name": "closed_form",
                "params": {"goal": "stream", "writers": True, "self_calibration": 15},
            }
        ],
        "carry": "refit",
        "carry_distill": {"steps": 10, "batch_tokens": 64},
        "calibration": {"file": "file-1", "sequences": 6, "length": 32},
        "evaluation": {"file": "file-2", "sequences": 4, "length": 32},
    }
    return PruneSpec(
        recipe=Recipe.model_validate(recipe),
        base=dense_base("llama"),
        adapters={"counting": adapter, "other": adapter},
        calibration=text,
        evaluation=text,
    )


@pytest.fixture(scope="module")
def finished(spec: PruneSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work directory of a run that nothing happened to, its state gone."""
    work = tmp_path_factory.mktemp("undisturbed")
    for stage in ORDER:
        STAGES[stage](spec, work, lambda fraction, message: None)
        shutil.rmtree(work / f"{stage}.state", ignore_errors=True)
    return work


def lives(stage: str, spec: PruneSpec, work: Path) -> Iterator[list[str]]:
    """Run a stage, stopped at its second word in every life but the last; what each life said."""
    for _ in range(100):
        said: list[str] = []

        def say(fraction: float, message: str, said: list[str] = said) -> None:
            said.append(message)
            if len(said) == 2:
                raise KeyboardInterrupt

        try:
            STAGES[stage](spec, work, say)
        except KeyboardInterrupt:
            yield said
        else:
            yield said
            return
    raise AssertionError("it gets nowhere")


@pytest.mark.parametrize("stage", ["calibrate", "plan", "recover", "carry"])
def test_stopped_as_often_as_it_can_be_a_stage_makes_the_same_bytes(
    stage: str, spec: PruneSpec, finished: Path, tmp_path: Path
):
    work = tmp_path / "work"
    shutil.copytree(finished, work)
    shutil.rmtree(work / stage)
    said: list[Any] = list(lives(stage, spec, work))
    assert len(said) >= 4  # it was stopped in most of its layers
    assert tree_digest(work / stage) == tree_digest(finished / stage)
    layers = [[message for message in life if "layer" in message] for life in said]
    for before, after in zip(layers, layers[1:], strict=False):
        assert after[:1] == before[-1:] or not set(after) & set(before)
