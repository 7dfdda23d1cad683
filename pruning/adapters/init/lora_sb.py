"""LoRA-SB: begins at the first step of full fine-tuning, as far as the rank can say it.

Ponkshe et al., "Initialization using Update Approximation is a Silver Bullet for Extremely
Efficient Low-Rank Fine-Tuning", arXiv 2024, https://arxiv.org/abs/2411.19557, algorithm 1: with
-η sign(G) = U S Vᵀ, G the mean gradient over some rows, B = U[:, :r], A = V[:, :r]ᵀ and the core
begins as S[:r].  The factors are orthonormal and the scale is one, so that the core's gradient is
that of the weight between them.  The base gives nothing up: this is no restart but a step.
"""

import torch

from pruning.adapters.train.starts import Start, Starts
from pruning.adapters.train.tuned import Site
from pruning.methods.training import LoraSbParams


def begin(site: Site, params: LoraSbParams) -> Starts:
    """A forward and a backward pass over the rows; needs memory for the linears' gradients."""
    linears = {}
    for key, gradient_OI in site.gradients().items():
        step_OI = -params.size * site.first_update * gradient_OI.cpu().sign()
        u_OK, values_K, v_KI = torch.linalg.svd(step_OI, full_matrices=False)
        rank = min(site.ranks[key], len(values_K))
        linears[key] = Start(v_KI[:rank], u_OK[:, :rank], torch.diag(values_K[:rank]))
    return Starts(linears, 1.0)
