"""LoLDU: the first columns and rows of the weight's triangles around its diagonal.

Shi et al., "LoLDU: Low-Rank Adaptation via Lower-Diag-Upper Decomposition for Parameter-Efficient
Fine-Tuning", arXiv 2024, https://arxiv.org/abs/2410.13618, section 3: W = P L D U, B = P L[:, :r],
A = U[:r], and of D only the first r entries are trained, as form `diagonal` does.  The base gives
B · D · A up.
"""

import torch

from pruning.adapters.train.starts import Start, Starts
from pruning.adapters.train.tuned import Site
from pruning.methods.entry import Params

_SMALLEST_PIVOT = 1e-6  # of the largest: a row of U is divided by its pivot


def begin(site: Site, params: Params) -> Starts:
    """An LU decomposition of each weight, in float64; the scale is one."""
    linears = {}
    for key in site.ranks:
        p_OO, l_OK, u_KI = torch.linalg.lu(site.weight(key).cpu().double())
        pivots_K = u_KI.diagonal()
        usable_K = pivots_K.abs() > _SMALLEST_PIVOT * pivots_K.abs().max()
        kept_R = usable_K.nonzero().flatten()[: site.ranks[key]]
        pivots_R = pivots_K[kept_R]
        a_RI = (u_KI[kept_R] / pivots_R[:, None]).float()
        linears[key] = Start(a_RI, (p_OO @ l_OK)[:, kept_R].float(), torch.diag(pivots_R).float())
    return Starts(linears, 1.0, is_part_of_base=True)
