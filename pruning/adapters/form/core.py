"""A square between the factors: B · R · A, of which R alone is trained, or all three.

Bałazy et al., "LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters", ECAI 2025,
https://arxiv.org/abs/2405.17604, equation 2.  With init `lora_sb` it is LoRA-SB, with `nystrom`
IntTune and, all three trained, NLoRA.
"""

# Shape suffixes:  R = atoms,  O = outputs of the linear.

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pruning.adapters.train.tuned import Setting, Tuned, begin_of, factor, side_a, side_b
from pruning.methods.training import CoreParams


class Core(nn.Module):
    """B · R in the place of B."""

    def __init__(self, core_RR: Tensor):
        super().__init__()
        self.core_RR = nn.Parameter(core_RR.clone())

    def forward(self, b_OR: Tensor) -> Tensor:
        return b_OR @ self.core_RR


def attach(tuned: Tuned, params: CoreParams, setting: Setting) -> None:
    """R begins as the initialisation says, or as the identity."""
    for key, layer in tuned.layers.items():
        start = begin_of(tuned, key)
        core_RR = start.core_RR
        if core_RR is None:
            core_RR = torch.eye(len(start.a_RI), device=start.a_RI.device)
        side_b(layer).weight.data.copy_(start.b_OR)
        parametrize.register_parametrization(side_b(layer), "weight", Core(core_RR))
        for side in (side_a(layer), side_b(layer)):
            factor(side).requires_grad_(params.train == "all")
