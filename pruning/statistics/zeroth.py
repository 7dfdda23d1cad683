"""Zeroth-order sensitivity of each linear: two forwards per perturbation, no backward.

Sung et al., "ECoFLaP: Efficient Coarse-to-Fine Layer-Wise Pruning for Vision-Language Models",
ICLR 2024, https://arxiv.org/abs/2310.02998: |L(θ + εz) - L(θ - εz)| / 2ε for one matrix θ at a
time, z drawn from a seed and never stored.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from pruning.progress import Progress
from pruning.statistics.streaming import Stream
from pruning.weights.tensors import block_of

Key = tuple[int, str]  # layer, linear
EPSILON = 1e-3
NOISES = 2  # perturbations of each linear
SEQUENCES = 8  # of the calibration text, the first ones


@dataclass(frozen=True)
class ZerothOrder:
    """Perturbations tried, and the sizes of their directional derivatives, summed; in float64."""

    noises: int
    total: Tensor

    def merge(self, other: Self) -> Self:
        """Of the perturbations of both together."""
        return type(self)(self.noises + other.noises, self.total + other.total)


def measure(stream: Stream, progress: Progress) -> dict[Key, ZerothOrder]:
    """Perturb every linear, after `stream.forward(keep_inputs=True)`.

    A change in a layer leaves its inputs as they were, so each forward begins at that layer; in
    memory are one layer and the hidden states of SEQUENCES sequences.
    """
    found: dict[Key, ZerothOrder] = {}
    linears = stream.checkpoint.geometry.architecture.linears
    steps = stream.num_layers * len(linears)
    for index in range(stream.num_layers):
        for number, linear in enumerate(linears):
            done = index * len(linears) + number
            progress(done / steps, f"perturbing {linear} of layer {index + 1}")
            slopes = [_slope(stream, index, linear, done * NOISES + n) for n in range(NOISES)]
            total = torch.tensor(sum(map(abs, slopes)), dtype=torch.float64)
            found[index, linear] = ZerothOrder(NOISES, total)
    return found


def _slope(stream: Stream, index: int, linear: str, seed: int) -> float:
    """The derivative of the loss along the noise of a seed."""

    def loss(step: float) -> float:
        def perturb(layer: nn.Module) -> None:
            weight = layer.get_parameter(f"{block_of(linear)}.{linear}.weight")
            generator = torch.Generator().manual_seed(seed)
            noise = torch.randn(weight.shape, generator=generator)
            weight.data += step * noise.to(weight.device)

        return stream.loss_from(index, perturb, SEQUENCES)

    return (loss(EPSILON) - loss(-EPSILON)) / (2 * EPSILON)
