"""One form for each adapter: the factors of ΔW = B A in the frame of a given A₀.

(B, A) and (B G⁻¹, G A) are the same adapter for every invertible G, so factors that were trained
apart can differ where adapters do not, and a network that learns factors learns the mean of frames.
G is chosen such that G A is as near to A₀ as it can be.
"""

# Shape suffixes:  R = rank,  I = inputs and  O = outputs of the linear.

import torch
from torch import Tensor

from pruning.adapters.algebra import Bag


def in_frame(bag: Bag, a0_RI: Tensor) -> Bag:
    """The same ΔW with A' = A₀ P, where P projects onto the rows of A.

    The same for every gauge of `bag`.  Needs rows of A that are linearly independent, and none of
    A₀ orthogonal to all of them, which holds where A was trained from A₀.
    """
    a_RI, b_OR, frame_RI = bag.a_RI.double(), bag.b_OR.double(), a0_RI.double()
    gauge_RR = torch.linalg.lstsq(a_RI.T, frame_RI.T).solution.T  # A₀ Aᵀ (A Aᵀ)⁻¹
    framed_OR = torch.linalg.solve(gauge_RR, b_OR, left=False)
    return Bag((gauge_RR @ a_RI).float(), framed_OR.float())
