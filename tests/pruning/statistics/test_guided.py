"""Guided Grams, against gradients of the whole model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from pruning.calibration import collect_into
from pruning.stats import Statistics
from pruning.weights.checkpoint import Checkpoint


@pytest.mark.parametrize("layer", [0, 3])
@pytest.mark.parametrize("linear", ["self_attn.o_proj", "mlp.down_proj"])
def test_tokens_weigh_by_the_squared_gradient_at_the_readers_output(
    layer: int, linear: str, dense_base: Callable[[str], Path], ids: Tensor, tmp_path: Path
):
    path = tmp_path / "statistics.safetensors"
    checkpoint, state = Checkpoint(dense_base("llama")), tmp_path / "state"
    collect_into(path, checkpoint, ids, {"guided_grams"}, 0, state, lambda *_: None)
    model = AutoModelForCausalLM.from_pretrained(dense_base("llama"), dtype=torch.float32)
    seen: list[Tensor] = []

    def watch(module: torch.nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        output.retain_grad()
        seen.extend((inputs[0], output))

    model.model.layers[layer].get_submodule(linear).register_forward_hook(watch)
    logits = model(ids).logits[:, :-1]
    cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").backward()
    assert seen[1].grad is not None
    inputs, gradients = seen[0].detach().flatten(0, 1), seen[1].grad.flatten(0, 1)
    expected = (inputs * gradients.square().sum(dim=1, keepdim=True)).T @ inputs
    found = Statistics.load(path).guided_grams[layer, linear.split(".")[1]]
    torch.testing.assert_close(found.float(), expected, rtol=1e-3, atol=1e-5)
