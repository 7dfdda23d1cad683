"""Whether an adapter is cheaper beside its base ("chained"), or merged into it first.

Beside it every token passes A and then B, rank · (inputs + outputs) multiplications and additions;
W + B · A takes rank · inputs · outputs, once, and tokens pass nothing more.  What memory takes
changes hardly any choice (benchmarks/order.py).  Fast training rests on chained factors as well: Hu
et al., "Computational Limits of Low-Rank Adaptation (LoRA) Fine-Tuning for Transformer Models",
ICLR 2025, https://arxiv.org/abs/2406.03136.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Order = Literal["chained", "merged"]


@dataclass(frozen=True)
class Shape:
    """Of an adapter on one linear."""

    inputs: int
    outputs: int
    rank: int

    def chained(self, tokens: int) -> int:
        """Operations for so many tokens beside the base."""
        return 2 * tokens * self.rank * (self.inputs + self.outputs)

    @property
    def merged(self) -> int:
        """Operations to make W + B · A."""
        return 2 * self.rank * self.inputs * self.outputs


def cheaper(shapes: Sequence[Shape], tokens: int) -> Order:
    """How to run an adapter for so many tokens, after which it leaves."""
    return "merged" if tokens > break_even(shapes) else "chained"


def break_even(shapes: Sequence[Shape]) -> int:
    """For how many tokens the chain is not dearer; W + B · A moves W as well, so ties are its."""
    each = sum(shape.chained(1) for shape in shapes)
    return sum(shape.merged for shape in shapes) // each
