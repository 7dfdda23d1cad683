"""NLoRA: the first columns and rows of the weight, and the inverse of where they cross.

Guo et al., "NLoRA: Nyström-Initiated Low-Rank Adaptation for Large Language Models", arXiv 2025,
https://arxiv.org/abs/2502.14482, section 3.2: B = W[:, :r], A = W[:r] and the core is the
pseudo-inverse of W[:r, :r], so that B · core · A is Nyström's approximation of W; no decomposition
of W is needed.  The base gives it up, and training begins at the base itself.  The released code
has W[:r, :r] in the place of its inverse, and begins beside the base.  With form `core` this is
their IntTune, with `train: all` NLoRA.
"""

import torch

from pruning.adapters.train.starts import Start, Starts
from pruning.adapters.train.tuned import Site
from pruning.methods.training import NystromParams


def begin(site: Site, params: NystromParams) -> Starts:
    """One small pseudo-inverse for each linear; the scale is one."""
    linears = {}
    for key in site.ranks:
        weight_OI = site.weight(key).cpu()
        rank = min(site.ranks[key], *weight_OI.shape)
        crossing_RR = weight_OI[:rank, :rank].double()
        core_RR = torch.linalg.pinv(crossing_RR, rtol=params.tolerance).float()
        linears[key] = Start(weight_OI[:rank].clone(), weight_OI[:, :rank].clone(), core_RR)
    return Starts(linears, 1.0, is_part_of_base=True)
