"""Adapters that share the batches of a base: each row as PEFT makes it with its adapter alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from pruning import evaluation
from pruning.adapters.mounted import mounted
from pruning.evaluation import Example

CONFIGS = {
    "llama": [
        {"r": 2, "target_modules": ["q_proj", "v_proj"]},
        {"r": 6, "lora_alpha": 3, "target_modules": "all-linear", "use_rslora": True},
        {"r": 4, "target_modules": ["down_proj"], "layers_to_transform": [1, 3]},
        {"r": 3, "target_modules": ["o_proj", "up_proj"], "rank_pattern": {"up_proj": 5}},
    ],
    "phi3": [
        {"r": 2, "target_modules": ["qkv_proj", "down_proj"]},
        {"r": 3, "target_modules": ["gate_up_proj"]},
    ],
}
ROWS: list[list[Example]] = [
    [([256, 1, 2, 3, 4, 5], 3), ([256, 9, 8], 1)],
    [([256, *range(20)], 10)],
    [([256, 7, 7, 7], 2)],
    [([256, 30, 31, 32], 2), ([256, 33, 34, 35, 36], 1)],
]


@pytest.fixture
def adapters(dense_base: Callable[[str], Path], tmp_path: Path) -> Callable[[str], list[Path]]:
    def make(base: str) -> list[Path]:
        torch.manual_seed(0)
        for number, config in enumerate(CONFIGS[base]):
            model: Any = AutoModelForCausalLM.from_pretrained(dense_base(base))
            adapted = get_peft_model(model, LoraConfig(**config))
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.data = 0.1 * torch.randn_like(parameter)
            adapted.save_pretrained(tmp_path / str(number))
        return [tmp_path / str(number) for number in range(len(CONFIGS[base]))]

    return make


def quiet(fraction: float, message: str) -> None:
    return None


@pytest.mark.parametrize("base", CONFIGS)
def test_each_adapter_has_the_loss_that_it_has_alone(
    base: str, dense_base: Callable[[str], Path], adapters: Callable[[str], list[Path]]
):
    made = adapters(base)
    rows = ROWS[: len(made)]
    model = evaluation.load(dense_base(base))
    before = evaluation.completion_losses(model, rows, quiet)
    with mounted(model, made) as chosen:
        together = evaluation.completion_losses(model, rows, quiet, chosen.choose)
    assert evaluation.completion_losses(model, rows, quiet) == before
    alone = [
        evaluation.completion_loss(
            evaluation.with_adapter(evaluation.load(dense_base(base)), adapter), own, quiet
        )
        for adapter, own in zip(made, rows, strict=True)
    ]
    assert together == pytest.approx(alone, rel=1e-4)
    assert all(abs(a - b) > 1e-3 for a, b in zip(alone, before, strict=True))
