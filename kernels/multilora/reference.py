"""What the operation means, in torch and in any float dtype; also what serves without kernels.

Rows that share an adapter share its two products, as in S-LoRA (Sheng et al., MLSys 2024,
https://arxiv.org/abs/2311.03285).
"""

# Shape suffixes: T = tokens, I = inputs, O = outputs of all slices of a linear, R = rank.

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Composition = Sequence[tuple[int, float]]  # slots and their weights
Matrices = tuple[Tensor, Tensor]  # A (R, I) and B (O of the slice, R)


def apply_(
    y_TO: Tensor,
    x_TI: Tensor,
    rows_T: Tensor,
    compositions: Sequence[Composition],
    adapter: Callable[[int, int], Matrices | None],
    widths: Sequence[int],
) -> None:
    """y += sum of w B (A x) over the parts of each row's composition, slice by slice, in place.

    rows_T (T,) names the composition of each row, -1 for none; such rows are not touched.
    `adapter(slot, slice)` gives a part's matrices, of any rank, or None where it has none.
    """
    for index in torch.unique(rows_T).tolist():
        if index < 0:
            continue
        rows = (rows_T == index).nonzero().squeeze(1)
        inputs, offset = x_TI[rows], 0
        for number, width in enumerate(widths):
            for slot, weight in compositions[index]:
                if matrices := adapter(slot, number):
                    delta = (inputs @ matrices[0].T) @ matrices[1].T
                    y_TO[:, offset : offset + width].index_add_(0, rows, delta, alpha=weight)
            offset += width
