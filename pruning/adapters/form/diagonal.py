"""A diagonal between factors that stay, and one number for all of it: rank + 1 numbers a linear.

Shi et al., "LoLDU: Low-Rank Adaptation via Lower-Diag-Upper Decomposition for Parameter-Efficient
Fine-Tuning", arXiv 2024, https://arxiv.org/abs/2410.13618, equation 5: σ · B · diag(z) · A.
"""

# Shape suffixes:  R = atoms,  O = outputs of the linear.

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pruning.adapters.train.tuned import Setting, Tuned, begin_of, factor, side_a, side_b
from pruning.errors import InvalidInput
from pruning.methods.entry import Params


class Diagonal(nn.Module):
    """σ · B · diag(z) in the place of B."""

    def __init__(self, diagonal_R: Tensor):
        super().__init__()
        self.diagonal_R = nn.Parameter(diagonal_R.clone())
        self.gain = nn.Parameter(torch.ones((), device=diagonal_R.device))

    def forward(self, b_OR: Tensor) -> Tensor:
        return b_OR * (self.gain * self.diagonal_R)


def attach(tuned: Tuned, params: Params, setting: Setting) -> None:
    """z begins as the initialisation says, or as ones; InvalidInput where that is no diagonal."""
    for key, layer in tuned.layers.items():
        start = begin_of(tuned, key)
        diagonal_R = torch.ones(len(start.a_RI), device=start.a_RI.device)
        if start.core_RR is not None:
            diagonal_R = start.core_RR.diagonal()
            if not torch.equal(torch.diag(diagonal_R), start.core_RR):
                raise InvalidInput(
                    "form", "the initialisation begins with a whole square; use loldu or form core"
                )
        side_b(layer).weight.data.copy_(start.b_OR)
        parametrize.register_parametrization(side_b(layer), "weight", Diagonal(diagonal_R))
        for side in (side_a(layer), side_b(layer)):
            factor(side).requires_grad_(False)
