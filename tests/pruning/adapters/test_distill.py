"""Carried adapters after a short distillation: nearer to the dense base, all else as it was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.nn.functional import kl_div
from transformers import AutoModelForCausalLM

from pruning import evaluation
from pruning.adapters.own_text import OwnText
from pruning.architectures.llama import LINEARS
from pruning.jobs.outputs import slim_base
from pruning.pipeline import STAGES
from pruning.recipe import PruneSpec, Recipe
from pruning.text import load_tokenizer

TEXT = "".join(f"Sentence {i} is about the number {i * i}.\n" for i in range(60))
ROWS = "".join(f'{{"prompt": "{i} and {i} is", "completion": " {2 * i}."}}\n' for i in range(40))
STEPS = {"steps": 12, "batch_tokens": 200, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def adapter(dense_base: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(dense_base("llama"), dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=list(LINEARS)))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn_like(parameter)
    directory = tmp_path_factory.mktemp("adapter")
    adapted.save_pretrained(directory)
    (directory / "calibration.jsonl").write_text(ROWS)
    return directory


@pytest.fixture
def carried(dense_base: Callable[[str], Path], adapter: Path, tmp_path: Path) -> Any:
    """Run a job's stages up to the carry; the slim base and the carried adapter."""
    (tmp_path / "text").write_text(TEXT)

    def run(**changes: Any) -> tuple[Path, Path]:
        recipe = {
            "name": "slim",
            "base": "dense",
            "target": 0.3,
            "ffn_multiple": 4,
            "calibration": {"file": "file-1", "sequences": 6, "length": 32},
            "evaluation": {"file": "file-2", "sequences": 4, "length": 32},
        }
        spec = PruneSpec(
            recipe=Recipe.model_validate({**recipe, **changes}),
            base=dense_base("llama"),
            adapters={"counting": adapter},
            calibration=tmp_path / "text",
            evaluation=tmp_path / "text",
        )
        for stage in ("calibrate", "plan", "slice", "recover", "carry"):
            STAGES[stage](spec, tmp_path, lambda fraction, message: None)
        return slim_base(spec, tmp_path), tmp_path / "carry" / "adapters" / "counting"

    return run


@pytest.fixture
def distance(dense_base: Callable[[str], Path], adapter: Path) -> Callable[[Path, Path], float]:
    """KL to the dense base with its adapter, on rows like its own that it was not trained on."""
    tokenizer = load_tokenizer(dense_base("llama"))
    rows = [tokenizer.encode(f"{i} and {i} is {2 * i}.") for i in range(50, 60)]
    ids = torch.tensor(rows)

    @torch.inference_mode()
    def found(base: Path, carried: Path) -> float:
        log_p, log_q = (
            evaluation.with_adapter(evaluation.load(path), lora)(ids).logits.log_softmax(-1)
            for path, lora in ((dense_base("llama"), adapter), (base, carried))
        )
        return float(kl_div(log_q, log_p, reduction="sum", log_target=True)) / ids.numel()

    return found


@pytest.mark.parametrize(
    "recovery",
    [[], [{"name": "distill", "params": {"tokens": 512, "batch": 4, "held_out": 0.2}}]],
    ids=["as cut", "after a trained recovery"],
)
def test_a_distilled_adapter_is_closer_to_the_dense_base_with_its_adapter(
    recovery: Any, carried: Any, distance: Any
):
    base, adapter = carried(recovery=recovery)
    before = distance(base, adapter)
    tensors = load_file(adapter / "adapter_model.safetensors")
    weights = (base / "model.safetensors").read_bytes()

    base, adapter = carried(recovery=recovery, carry_distill=STEPS)
    assert distance(base, adapter) < 0.8 * before
    assert (base / "model.safetensors").read_bytes() == weights  # none but the atoms moved
    distilled = load_file(adapter / "adapter_model.safetensors")
    assert {n: (t.shape, t.dtype) for n, t in distilled.items()} == {
        n: (t.shape, t.dtype) for n, t in tensors.items()
    }
    assert all(not torch.equal(distilled[name], tensors[name]) for name in tensors)


def test_training_that_makes_it_worse_is_undone(carried: Any):
    _, adapter = carried()
    before = (adapter / "adapter_model.safetensors").read_bytes()
    _, adapter = carried(carry_distill={**STEPS, "learning_rate": 100.0})
    assert (adapter / "adapter_model.safetensors").read_bytes() == before


def test_a_batch_is_no_longer_than_its_longest_row():
    text = OwnText.of_rows([([1, 2, 3, 4], 1), ([5, 6], 1), ([7], 1)], sink_tokens=0)
    assert text.select([1, 2]).ids_ST.tolist() == [[5, 6], [7, 0]]
    assert text.num_tokens == 7
