"""Mean absolute activations per sequence, as Minitron aggregates them.

Muralidharan et al., NeurIPS 2024, https://arxiv.org/abs/2407.14679.
"""

# Shape suffixes:  S = sequences,  T = tokens,  C = channels.

from dataclasses import dataclass
from typing import Self

from torch import Tensor


@dataclass(frozen=True)
class AbsoluteMeans:
    """Sequences seen, and the squared mean of |x| over tokens, summed over them, in float64."""

    sequences: int
    squares_C: Tensor

    @classmethod
    def updated(cls, before: Self | None, inputs_STC: Tensor) -> Self:
        """After some more sequences."""
        squares_C = inputs_STC.double().abs().mean(dim=1).square().sum(dim=0).cpu()
        new = cls(len(inputs_STC), squares_C)
        return before.merge(new) if before else new

    def merge(self, other: Self) -> Self:
        """Of both sets of sequences together."""
        return type(self)(self.sequences + other.sequences, self.squares_C + other.squares_C)
