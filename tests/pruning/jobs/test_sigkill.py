"""Stages of the real pipeline, killed with SIGKILL at random instants, make the same bytes."""

import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from pruning.architectures.llama import LINEARS
from pruning.digest import tree_digest
from pruning.jobs.kinds import PRUNING, stages_of
from pruning.recipe import PruneSpec, Recipe

ROWS = "".join(f'{{"prompt": "{i} and {i} is", "completion": " {2 * i}."}}\n' for i in range(30))
TEXT = "".join(f"Sentence {i} is about the number {i * i}.\n" for i in range(400))


@pytest.fixture
def adapter_directory(dense_base, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(dense_base("llama"), dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=list(LINEARS)))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def spec(dense_base, adapter_directory, tmp_path):
    """A job that calibrates, refits, and refits and distils two adapters."""
    (tmp_path / "text").write_text(TEXT)
    adapters = {name: tmp_path / name for name in ("one", "two")}
    for adapter in adapters.values():
        shutil.copytree(adapter_directory, adapter)
        (adapter / "calibration.jsonl").write_text(ROWS)
    recipe = {
        "name": "slim",
        "base": "demo",
        "target": 0.2,
        "units": ["ffn_channel"],
        "ffn_multiple": 4,
        "criterion": {"name": "obs"},
        "recovery": [{"name": "closed_form"}],
        "carry": "refit",
        "carry_distill": {"steps": 10, "batch_tokens": 100},
        "calibration": {"file": "file-1", "sequences": 64, "length": 32},
        "evaluation": {"file": "file-2", "sequences": 16, "length": 32},
    }
    return PruneSpec(
        recipe=Recipe.model_validate(recipe),
        base=dense_base("llama"),
        adapters=adapters,
        calibration=tmp_path / "text",
        evaluation=tmp_path / "text",
    )


def digests(work, stages):
    """Of the outputs, and of the artifact but for its report."""
    named = {name: tree_digest(work / name) for name in stages if name not in TIMED}
    return named | {"publish": tree_digest(work / "publish" / "model")}


TIMED = ("evaluate", "publish")  # these tell times


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_random_a_job_makes_the_same_bytes_and_no_kill_costs_more_than_a_layer(
    kills, spec, mortal, repeated
):
    stages = stages_of(spec.recipe)
    jobs = mortal(PRUNING, spec, stages)
    whole, durations = jobs.undisturbed()
    for work in jobs.killed(kills, durations):
        assert digests(work, stages) == digests(whole, stages)
        assert max(repeated(work / "said")) <= 1
