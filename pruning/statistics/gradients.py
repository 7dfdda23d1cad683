"""Weights times their gradients, summed over all but the axis of the units.

A backward walk brings one layer's gradients after the other; nothing but these sums is kept.
They are sums of absolute values or roots of whole-set gradients, so two sites' cannot be merged.
"""

# Shape suffixes:  C = channels of a unit axis,  N = tokens,  V = vocabulary.

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruning.geometry import Geometry
from pruning.units import BLOCKS, KINDS, Member, members

Key = tuple[int, str]  # layer, linear


@dataclass(frozen=True)
class Saliency:
    """Weight times gradient of a linear, summed over all but its unit axis, in float64."""

    element_C: Tensor  # the absolute value taken before the sum
    vector_C: Tensor  # the signed sum


@dataclass(frozen=True)
class SequenceGradients:
    """Weights and the gradients g_n of single sequences, summed over all but the unit axis.

    Each g_n is of the mean next-token loss of sequence n; g is their mean over the N sequences, and
    F = Σ_n g_n² / N the diagonal Fisher information as LLM-Pruner estimates it.
    """

    second_C: Tensor  # Σ w² F
    mix_C: Tensor  # Σ |w g - ½ w² F|
    l1_C: Tensor  # Σ |w| · Σ_n |g_n| / N
    l2_C: Tensor  # Σ |w| · sqrt(F)


def entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Entropy of the predicted distributions, summed over tokens, in nats."""
    logs_NV = logits_NV.log_softmax(dim=-1)
    return -(logs_NV.exp() * logs_NV).sum()


def add_saliency(
    found: MutableMapping[Key, Saliency], geometry: Geometry, index: int, layer: nn.Module
) -> None:
    """Record the saliency of a layer whose gradients are complete."""
    for member, weight in _members(geometry, index, layer):
        assert weight.grad is not None
        product = weight.detach() * weight.grad
        vector_C = _by_channel(product, member)
        element_C = _by_channel(product.abs_(), member)
        found[index, member.linear] = Saliency(element_C, vector_C)


class SequenceWalk:
    """Gathers SequenceGradients while single sequences pass a layer.

    Holds three sums in the shape of the layer's weights, for one layer at a time.
    """

    def __init__(self, geometry: Geometry, num_sequences: int):
        self.geometry, self.num_sequences = geometry, num_sequences
        self.found: dict[Key, SequenceGradients] = {}
        self._sums: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def add(self, index: int, layer: nn.Module) -> None:
        """Take in the gradient of one sequence and clear it."""
        for member, weight in _members(self.geometry, index, layer):
            gradient = weight.grad
            assert gradient is not None
            gradient *= self.num_sequences  # of this sequence's own mean loss
            if member.linear not in self._sums:
                first, second, third = (torch.zeros_like(gradient) for _ in range(3))
                self._sums[member.linear] = first, second, third
            total, squares, sizes = self._sums[member.linear]
            total += gradient
            squares.addcmul_(gradient, gradient)
            sizes += gradient.abs()
            gradient.zero_()

    def finish(self, index: int, layer: nn.Module) -> None:
        """Weigh the sums of a layer whose sequences have all passed."""
        for member, parameter in _members(self.geometry, index, layer):
            gradient, fisher, size = (
                total / self.num_sequences for total in self._sums.pop(member.linear)
            )
            weight = parameter.detach()
            second = weight.square() * fisher
            self.found[index, member.linear] = SequenceGradients(
                second_C=_by_channel(second, member),
                mix_C=_by_channel((weight * gradient - second / 2).abs(), member),
                l1_C=_by_channel(weight.abs() * size, member),
                l2_C=_by_channel(weight.abs() * fisher.sqrt(), member),
            )


def _members(
    geometry: Geometry, index: int, layer: nn.Module
) -> Iterator[tuple[Member, nn.Parameter]]:
    for kind in KINDS:
        for member in members(geometry, index, kind):
            yield member, layer.get_parameter(f"{BLOCKS[kind]}.{member.linear}.weight")


def _by_channel(matrix: Tensor, member: Member) -> Tensor:
    return matrix.sum(dim=1 - member.axis, dtype=torch.float64).cpu()
