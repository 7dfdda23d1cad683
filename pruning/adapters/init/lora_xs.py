"""LoRA-XS: the weight's principal singular vectors around a small core, which alone is trained.

Bałazy et al., "LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters", ECAI 2025,
https://arxiv.org/abs/2405.17604, equation 2: with W = U S Vᵀ, ΔW = U[:, :r] S[:r] R V[:, :r]ᵀ; the
core R begins near zero.
"""

import torch

from pruning.adapters.merging import seed_of
from pruning.adapters.train.starts import Start, Starts
from pruning.adapters.train.tuned import Site
from pruning.methods.training import LoraXsParams


def begin(site: Site, params: LoraXsParams) -> Starts:
    """A singular value decomposition of each weight; the scale is one."""
    linears = {}
    for key in site.ranks:
        u_OK, values_K, v_KI = torch.linalg.svd(site.weight(key).cpu(), full_matrices=False)
        rank = min(site.ranks[key], len(values_K))
        generator = torch.Generator().manual_seed(seed_of(site.seed, key))
        core_RR = params.deviation * torch.randn(rank, rank, generator=generator)
        linears[key] = Start(v_KI[:rank], u_OK[:, :rank] * values_K[:rank], core_RR)
    return Starts(linears, 1.0)
