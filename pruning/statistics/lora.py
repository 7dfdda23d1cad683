"""LoRAPrune's saliency: the gradient of a weight estimated from those of a LoRA on it.

Zhang et al., "LoRAPrune", Findings of ACL 2024, https://arxiv.org/abs/2305.18403:
ĝ = ∂B·A + B·∂A - ∂B·∂A and S = |ĝ ⊙ (W + s·B·A)|.  At the start of training B is zero, and with it
∂A, so that ĝ = ∂B·A: a sketch of the gradient through A's random rows.
Base weights require no gradient and none is ever allocated.
"""

# Shape suffixes:  S = sequences,  T = tokens,  R = rank,  O = outputs,  I = inputs,
#                  C = channels of a unit axis.

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pruning.geometry import Geometry
from pruning.units import KINDS, members
from pruning.weights.tensors import block_of

Key = tuple[int, str]  # layer, linear
RANK = 8


@dataclass(frozen=True)
class LoraSaliency:
    """|ĝ ⊙ W| of a linear, summed over all but its unit axis, in float64."""

    element_C: Tensor


class LoraWalk:
    """Puts a fresh LoRA of scale 1 on every linear of a layer, and reads its gradients."""

    def __init__(self, geometry: Geometry, layer: nn.Module):
        self.geometry, self._layer = geometry, layer
        self.found: dict[Key, LoraSaliency] = {}
        self._sides: dict[str, tuple[Tensor, Tensor]] = {}
        self._hooks: list[Any] = [
            layer.get_submodule(f"{block_of(name)}.{name}").register_forward_hook(
                partial(self._add, name)
            )
            for name in geometry.architecture.linears
        ]

    def prepare(self, index: int, layer: nn.Module) -> None:
        """A as PEFT draws it, uniform with variance 1/(3I), from the index of the layer; B zero."""
        layer.requires_grad_(False)
        generator = torch.Generator().manual_seed(index)
        for name in self.geometry.architecture.linears:
            weight = layer.get_parameter(f"{block_of(name)}.{name}.weight")
            outputs, inputs = weight.shape
            draw_RI = torch.rand(RANK, inputs, generator=generator) * 2 - 1
            b_OR = torch.zeros(outputs, RANK, device=weight.device, requires_grad=True)
            self._sides[name] = (draw_RI / inputs**0.5).to(weight.device), b_OR

    def finish(self, index: int, layer: nn.Module) -> None:
        for kind in KINDS:
            for member in members(self.geometry, index, kind):
                a_RI, b_OR = self._sides.pop(member.linear)
                weight_OI = layer.get_parameter(f"{block_of(member.linear)}.{member.linear}.weight")
                assert b_OR.grad is not None
                product_OI = (b_OR.grad @ a_RI).mul_(weight_OI).abs_()
                element_C = product_OI.sum(dim=1 - member.axis, dtype=torch.float64).cpu()
                self.found[index, member.linear] = LoraSaliency(element_C)

    def stop(self) -> None:
        """Leave the layer as it was."""
        while self._hooks:
            self._hooks.pop().remove()
        self._layer.requires_grad_(True)

    def _add(self, name: str, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        a_RI, b_OR = self._sides[name]
        return output + inputs[0] @ a_RI.T @ b_OR.T
