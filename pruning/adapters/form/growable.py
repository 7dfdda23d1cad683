"""Linears begin with one atom and gain more where they are needed; the total is given.

Zhang et al., "IncreLoRA: Incremental Parameter Allocation Method for Parameter-Efficient
Fine-tuning", arXiv 2023, https://arxiv.org/abs/2308.12043, equations 4 to 8: B · diag(e) · A, of
whose slots some are open.  Every few steps the linears with the highest score open the next; it
trains with e = 1e-5 before, and so begins warm.  The score of a step is Σ|ΔW ⊙ ∂L/∂ΔW| / √numel,
its mean over steps times that of its changes is what linears are compared by.
"""

# Shape suffixes:  R = slots,  I = inputs and  O = outputs of the linear,  N = tokens.

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pruning.adapters.train.tuned import Around, Setting, Tuned, factor, side_a, side_b
from pruning.methods.training import GrowableParams

RESERVE = 1e-5  # of a slot that trains before it is open
BETA = 0.85  # of both running means
DEVIATION = 0.02  # of the factors at first
ORTHOGONALITY = 0.1  # of how far factors are from orthonormal, in the loss


class Slots(nn.Module):
    """B · diag(e) in the place of B; e is zero where a slot is neither open nor next."""

    def __init__(self, rank: int, begin: int, device: torch.device):
        super().__init__()
        self.gate_R = nn.Parameter(torch.zeros(rank, device=device))
        self.open = nn.Buffer(torch.tensor(float(begin), device=device))

    def forward(self, b_OR: Tensor) -> Tensor:
        number_R = torch.arange(len(self.gate_R), device=b_OR.device)
        reserve_R = RESERVE * (number_R == self.open)
        return b_OR * torch.where(number_R < self.open, self.gate_R, reserve_R)


class _Sensed:
    """One linear: its slots, and how much its ΔW matters."""

    def __init__(self, layer: Any, slots: Slots):
        self.layer, self.slots = layer, slots
        self.means = torch.zeros(2, device=slots.open.device)  # of the score and of its changes
        self._gradient_OI: Tensor | None = None
        layer.register_forward_hook(self._remember)

    def _remember(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not output.requires_grad:
            return
        rows_NI = inputs[0].detach().flatten(0, -2)

        def add(gradient: Tensor) -> None:
            found_OI = gradient.flatten(0, -2).T @ rows_NI
            before_OI = self._gradient_OI
            self._gradient_OI = found_OI if before_OI is None else before_OI + found_OI

        register: Any = output.register_hook  # torch's stubs do not type it
        register(add)

    @torch.no_grad()
    def look(self) -> None:
        """Take a step's gradient of ΔW into the means."""
        assert self._gradient_OI is not None
        delta_OI = side_b(self.layer).weight @ side_a(self.layer).weight
        score = (delta_OI * self._gradient_OI).abs().sum() / math.sqrt(delta_OI.numel())
        self.means[0] = BETA * self.means[0] + (1 - BETA) * score
        change = (score - self.means[0]).abs()
        self.means[1] = BETA * self.means[1] + (1 - BETA) * change
        self._gradient_OI = None


class Growing(Around):
    """Opens slots until the total is reached."""

    keeps_last = True  # earlier weights have fewer slots

    def __init__(self, linears: list[_Sensed], total: int, params: GrowableParams, num_steps: int):
        self._linears, self._every, self._step = linears, params.every, 0
        growths = max(1, int(params.until * num_steps) // params.every)
        missing = total - params.begin * len(linears)
        self._total, self._at_once = total, max(1, math.ceil(missing / growths))

    def before(self, step: int) -> None:
        self._step = step

    def penalty(self) -> Tensor:
        factors = [one for sensed in self._linears for one in _factors(sensed.layer)]
        far = [(one @ one.T - torch.eye(len(one), device=one.device)).norm() for one in factors]
        return ORTHOGONALITY * torch.stack(far).mean()

    def after(self, rate: float) -> None:
        for sensed in self._linears:
            sensed.look()
        if (self._step + 1) % self._every == 0:
            self._grow()

    def _grow(self) -> None:
        left = self._total - sum(int(sensed.slots.open) for sensed in self._linears)
        able = [sensed for sensed in self._linears if sensed.slots.open < len(sensed.slots.gate_R)]
        able.sort(key=lambda sensed: float(sensed.means.prod()), reverse=True)
        for sensed in able[: max(0, min(left, self._at_once))]:
            sensed.slots.gate_R.data[int(sensed.slots.open)] = RESERVE
            sensed.slots.open.add_(1)

    @property
    def state(self) -> Mapping[str, Tensor]:
        found = {f"{i}.means": sensed.means for i, sensed in enumerate(self._linears)}
        return found | {f"{i}.open": one.slots.open for i, one in enumerate(self._linears)}


def attach(tuned: Tuned, params: GrowableParams, setting: Setting) -> Around:
    """The rank is the number of slots of each linear; on average half of them are opened."""
    generator, linears = torch.Generator().manual_seed(setting.seed), []
    for layer in tuned.layers.values():
        for one in (factor(side_a(layer)), factor(side_b(layer))):
            drawn = DEVIATION * torch.randn(one.shape, generator=generator)
            one.data.copy_(drawn)
        b_OR = factor(side_b(layer))
        slots = Slots(b_OR.shape[1], min(params.begin, b_OR.shape[1]), b_OR.device)
        parametrize.register_parametrization(side_b(layer), "weight", slots)
        linears.append(_Sensed(layer, slots))
    rank = max(len(start.a_RI) for start in tuned.starts.linears.values())
    total = round((params.mean or rank / 2) * len(linears))
    return Growing(linears, total, params, setting.num_steps)


def _factors(layer: Any) -> tuple[Tensor, Tensor]:
    return factor(side_a(layer)), factor(side_b(layer)).T
