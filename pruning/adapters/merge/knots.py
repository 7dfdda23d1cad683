"""KnOTS: TIES in coordinates that the adapters share, the left singular vectors of all ΔW.

Stoica et al., "Model Merging with SVD to Tie the Knots", ICLR 2025,
https://arxiv.org/abs/2410.19735.  [ΔW₁ … ΔWₙ] = U S [V₁ … Vₙ]; the S Vᵢ are merged, U stays.  Here
the decomposition comes from the factors, and trimming looks at one linear, not at all of them.
"""

# Shape suffixes:  O = outputs,  I = inputs,  P = atoms of all parts,  R = of one,  K = min(P, O).

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pruning.adapters import algebra, delta
from pruning.adapters.algebra import Bag
from pruning.adapters.merging import Merged, Part
from pruning.methods.adapters import SparseParams


def merge(parts: Sequence[Part], params: SparseParams, seed: int) -> Merged:
    """Align, trim, elect, average."""
    basis_OK, aligned = align([part.bag for part in parts])

    def trimmed() -> Iterator[Tensor]:
        for part, own_KI in zip(parts, aligned, strict=True):
            yield part.weight * delta.trim(own_KI, params.density)

    bag = Bag(delta.disjoint(trimmed), basis_OK)
    rank = params.rank or max(part.bag.rank for part in parts)
    return Merged(algebra.truncate(bag, rank))


def align(bags: Sequence[Bag]) -> tuple[Tensor, list[Tensor]]:
    """A common basis (O, K), and each ΔW in it (K, I): ΔWᵢ = basis @ alignedᵢ."""
    left_OK, left_KP = torch.linalg.qr(torch.cat([bag.b_OR for bag in bags], dim=1))
    rights = [torch.linalg.qr(bag.a_RI.T) for bag in bags]  # a.T = Q @ R
    ranks = [bag.rank for bag in bags]
    cores = [
        left_KR @ right.R.T
        for left_KR, right in zip(left_KP.split(ranks, dim=1), rights, strict=True)
    ]
    u_KK, values_K, v_KP = torch.linalg.svd(torch.cat(cores, dim=1), full_matrices=False)
    widths = [core.shape[1] for core in cores]
    scaled = (values_K[:, None] * v_KP).split(widths, dim=1)
    return left_OK @ u_KK, [s @ right.Q.T for s, right in zip(scaled, rights, strict=True)]
