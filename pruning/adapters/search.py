"""LoraHub: find the weights of a merge on a few examples, without gradients.

Huang et al., "LoraHub: Efficient Cross-Task Generalization via Dynamic LoRA Composition", COLM
2024, https://arxiv.org/abs/2307.13269: loss plus 0.05 times the mean absolute weight, weights
within ±1.5, some forty evaluations.  Where the paper takes NGOpt we take the (1+1) evolution
strategy with the one-fifth rule (Rechenberg 1973), which needs no library for so few dimensions.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

PENALTY, LIMIT, STEP = 0.05, 1.5, 0.3
_UP = 1.5  # growth of the step after a success; the shrinking below balances one in five


def search(
    loss: Callable[[Sequence[float]], float], start: Sequence[float], evaluations: int, seed: int
) -> tuple[float, ...]:
    """The best weights that were met, beginning with `start`."""
    generator = torch.Generator().manual_seed(seed)

    def cost(weights: Tensor) -> float:
        return loss(weights.tolist()) + PENALTY * float(weights.abs().mean())

    best = torch.tensor(start, dtype=torch.float64)
    lowest, step = cost(best), STEP
    for _ in range(evaluations - 1):
        noise = torch.randn(len(best), generator=generator, dtype=torch.float64)
        tried = (best + step * noise).clamp(-LIMIT, LIMIT)
        found = cost(tried)
        success = found < lowest
        step *= _UP if success else _UP**-0.25
        if success:
            best, lowest = tried, found
    return tuple(best.tolist())
