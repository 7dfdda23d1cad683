"""The input fluctuation as FLAP's released code computes it, errors and all.

An et al., AAAI 2024, https://arxiv.org/abs/2312.11983; lib/layerwrapper.py of the authors' code.
It departs from a variance in four ways:
1. Welford's update needs the mean before and after a sequence.  The "old" mean is another name of
   the tensor that is then changed in place, so both factors are x minus the new mean.
2. The first sequence moves the mean and adds nothing to the fluctuation.
3. Counts are of sequences, while each sequence adds a sum over its tokens; with T tokens a
   sequence all values are about T times a variance (harmless to a ranking).
4. The running value is scaled by (n - 2) / (n - 1) and the new term by 1 / n, which belong to
   different averages: in the end sequence k counts by (k - 1) / k, the second by a half.
The order of the sequences matters, so two sites' values cannot be merged.
"""

# Shape suffixes:  S = sequences,  T = tokens,  C = channels.

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class ReleasedFluctuation:
    """Sequences seen, mean and fluctuation of each channel, in float64."""

    sequences: int
    mean_C: Tensor
    fluctuation_C: Tensor

    @classmethod
    def updated(cls, before: Self | None, inputs_STC: Tensor) -> Self:
        """After some more sequences, one by one."""
        inputs_STC = inputs_STC.double()
        zeros_C = torch.zeros(inputs_STC.shape[-1], dtype=torch.float64, device=inputs_STC.device)
        count = before.sequences if before else 0
        mean_C = before.mean_C.to(inputs_STC.device) if before else zeros_C
        value_C = before.fluctuation_C.to(inputs_STC.device) if before else zeros_C
        for sequence_TC in inputs_STC:
            count += 1
            mean_C = mean_C + (sequence_TC.mean(dim=0) - mean_C) / count
            if count > 1:
                spread_C = (sequence_TC - mean_C).square().sum(dim=0)
                value_C = value_C * ((count - 2) / (count - 1)) + spread_C / count
        return cls(count, mean_C.cpu(), value_C.cpu())
