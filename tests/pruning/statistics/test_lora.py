"""LoRA-guided saliency: what a fresh LoRA's gradients say of the weights below it."""

from pathlib import Path

import torch
from torch import Tensor

from pruning.architectures.llama import LINEARS
from pruning.statistics.lora import RANK, LoraWalk
from pruning.statistics.streaming import Stream
from pruning.weights.checkpoint import Checkpoint
from pruning.weights.tensors import block_of


def nothing(*_: object) -> None:
    return None


def test_it_is_the_gradient_projected_on_the_rows_of_a(whole, streamed, ids: Tensor):
    """∂B = g·Aᵀ for a LoRA of scale 1 beside a weight with gradient g, so ĝ = g·Aᵀ·A."""
    model = whole("llama")
    model(ids, labels=ids).loss.backward()
    statistics = streamed("llama", "lora_saliency").lora_saliency
    generator = torch.Generator().manual_seed(2)  # of layer 2
    for linear in LINEARS:
        weight = model.get_submodule(f"model.layers.2.{block_of(linear)}.{linear}").weight
        a = (torch.rand(RANK, weight.shape[1], generator=generator) * 2 - 1) / weight.shape[
            1
        ] ** 0.5
        product = (weight.grad @ a.T @ a * weight).abs().detach().double()
        axis = 0 if linear in ("o_proj", "down_proj") else 1
        found = statistics[2, linear].element_C
        torch.testing.assert_close(found, product.sum(axis), rtol=1e-3, atol=1e-7)


def test_no_gradient_of_a_base_weight_is_ever_allocated(dense_base, ids: Tensor, tmp_path: Path):
    stream = Stream(Checkpoint(dense_base("qwen3")), ids, tmp_path)
    stream.forward(nothing, keep_inputs=True, progress=nothing)
    walk = LoraWalk(stream.checkpoint.geometry, stream.layer)
    seen = []

    def look(index: int, layer: torch.nn.Module) -> None:
        seen.append(index)
        assert all(parameter.grad is None for parameter in layer.parameters())

    stream.backward(walk.finish, nothing, prepare=walk.prepare, each=look)
    assert sorted(set(seen)) == [0, 1, 2, 3]
    assert len(walk.found) == 4 * len(LINEARS)


def test_the_layer_is_left_as_it_was(dense_base, ids: Tensor, tmp_path: Path):
    stream = Stream(Checkpoint(dense_base("llama")), ids, tmp_path)
    stream.forward(nothing, keep_inputs=True, progress=nothing)
    walk = LoraWalk(stream.checkpoint.geometry, stream.layer)
    stream.backward(walk.finish, nothing, prepare=walk.prepare)
    walk.stop()
    assert all(parameter.requires_grad for parameter in stream.layer.parameters())
    assert not any(module._forward_hooks for module in stream.layer.modules())
