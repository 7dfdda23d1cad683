"""Diagonals around random factors, of full rank for as few numbers as a LoRA of small rank has.

Albert et al., "RandLoRA: Full-rank parameter-efficient fine-tuning of large models", ICLR 2025,
https://arxiv.org/abs/2502.00987, equation 4: ΔW = gain · Σ_n B_n diag(λ_n) A_n diag(γ_n), with
n = min(outputs, inputs) / rank pairs of random factors that never change.  Here the pairs stand
side by side, as one LoRA of that many times the rank.
"""

# Shape suffixes:  N = pairs of bases,  R = atoms of a pair,  K = N · R,  M = the smaller and
# L = the larger of inputs and outputs.

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pruning.adapters.merging import seed_of
from pruning.adapters.train.tuned import Setting, Tuned, factor, side_a, side_b
from pruning.methods.training import RandloraParams


class Bases(nn.Module):
    """Both factors of a linear with inputs ≤ outputs, (K, M) and (L, K); the trained diagonals."""

    def __init__(self, rank: int, smaller: int, larger: int, gain: float, seed: int):
        super().__init__()
        pairs = -(-smaller // rank)
        generator = torch.Generator().manual_seed(seed)
        a_KM = torch.randn(pairs * rank, smaller, generator=generator) / math.sqrt(smaller)
        b_LK = torch.randn(larger, pairs * rank, generator=generator) / math.sqrt(rank)
        self.a_KM, self.b_LK = nn.Buffer(a_KM), nn.Buffer(b_LK)
        self.lambda_NR = nn.Parameter(torch.zeros(pairs, rank))
        self.gamma_NM = nn.Parameter(torch.full((pairs, smaller), 1 / max(pairs, smaller)))
        self._rank, self._gain = rank, gain

    def inner(self) -> Tensor:
        """gain · diag(λ) A diag(γ), the pairs one below the other; (K, M)."""
        gamma_KM = self.gamma_NM.repeat_interleave(self._rank, dim=0)
        return self._gain * self.lambda_NR.flatten()[:, None] * self.a_KM * gamma_KM


class _A(nn.Module):
    def __init__(self, bases: Bases, transposed: bool):
        super().__init__()
        self.bases, self._transposed = bases, transposed

    def forward(self, _: Tensor) -> Tensor:
        return self.bases.b_LK.T if self._transposed else self.bases.inner()


class _B(nn.Module):
    def __init__(self, bases: Bases, transposed: bool):
        super().__init__()
        self._bases, self._transposed = (bases,), transposed  # no second owner of the parameters

    def forward(self, _: Tensor) -> Tensor:
        (bases,) = self._bases
        return bases.inner().T if self._transposed else bases.b_LK


def attach(tuned: Tuned, params: RandloraParams, setting: Setting) -> None:
    """Only λ, zero at first, and γ are trained; equal shapes share their random factors."""
    for layer in tuned.layers.values():
        a, b = side_a(layer), side_b(layer)
        (rank, inputs), outputs = a.weight.shape, len(b.weight)
        smaller, larger = sorted((inputs, outputs))
        seed = seed_of(setting.seed, "bases", rank, smaller, larger)
        gain = params.gain / tuned.starts.scale
        bases = Bases(rank, smaller, larger, gain, seed).to(a.weight.device)
        for side, module in ((a, _A), (b, _B)):
            factor(side).requires_grad_(False)
            parametrization = module(bases, inputs > outputs)
            parametrize.register_parametrization(side, "weight", parametrization, unsafe=True)
