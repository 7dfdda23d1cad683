"""Linears, or blocks, whose factors may vanish altogether: what is not needed is not changed.

Zhao et al., "Continual Forgetting for Pre-trained Vision Models", CVPR 2024,
https://arxiv.org/abs/2403.11530, equation 6: α Σ_g √(Σ ‖A‖² + ‖B‖²) over groups g of factors is
added to the loss.  Here by its proximal step, which shortens each group by rate · α, so that groups
become exactly zero and are left out of what is served.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pruning.adapters.train.tuned import Around, Setting, Tuned, trained_sides
from pruning.methods.training import GroupLassoParams
from pruning.weights.tensors import block_of


class Vanishing(Around):
    """Shortens each group of factors after each step."""

    keeps_last = True  # earlier weights have fewer groups that are zero

    def __init__(self, groups: Sequence[Sequence[nn.Parameter]], strength: float):
        self._groups, self._strength = groups, strength

    def after(self, rate: float) -> None:
        for group in self._groups:
            shrink(group, rate * self._strength)


@torch.no_grad()
def shrink(group: Sequence[Tensor], threshold: float) -> None:
    """Make a group shorter by a threshold, or zero."""
    length = sum(float(one.square().sum()) for one in group) ** 0.5
    left = max(0.0, 1 - threshold / length) if length else 0.0
    for one in group:
        one.mul_(left)


def attach(tuned: Tuned, params: GroupLassoParams, setting: Setting) -> Around:
    """For forms that train both factors; InvalidInput otherwise."""
    groups: dict[tuple[int, str], list[nn.Parameter]] = {}
    for (layer, linear), factors in trained_sides(tuned, "group_lasso").items():
        name = block_of(linear) if params.group == "block" else linear
        groups.setdefault((layer, name), []).extend(factors)
    return Vanishing(list(groups.values()), params.strength)
