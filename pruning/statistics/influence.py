"""How much a decoder layer turns the hidden states that pass it: a small, mergeable statistic.

Block influence, 1 − cosine of what enters and what leaves a layer, is from Men et al., "ShortGPT:
Layers in Large Language Models are More Redundant Than You Expect", Findings of ACL 2025,
https://arxiv.org/abs/2403.03853; the angle instead is CFSP's, see allocators/sigmoid.py.
"""

# Shape suffixes:  S = sequences,  T = tokens,  N = tokens of a chunk,  H = hidden.

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cosine_similarity

WHOLE = "layer"  # the part of a layer that it is measured of, as keys of statistics name it


@dataclass(frozen=True)
class Influence:
    """Tokens seen, and sums over them in float64: of the cosine, and of the angle in units of π."""

    count: int
    cosine: Tensor  # ()
    angle: Tensor  # ()

    @classmethod
    def of(cls, before_NH: Tensor, after_NH: Tensor) -> "Influence":
        cosine_N = cosine_similarity(before_NH.double(), after_NH.double(), dim=-1).clamp(-1, 1)
        angle = cosine_N.acos().sum() / math.pi
        return cls(len(cosine_N), cosine_N.sum().cpu(), angle.cpu())

    @classmethod
    def updated(
        cls, seen: "Influence | None", before_STH: Tensor, after_STH: Tensor
    ) -> "Influence":
        """After some more sequences."""
        new = cls.of(before_STH.flatten(0, -2), after_STH.flatten(0, -2))
        return seen.merge(new) if seen else new

    def merge(self, other: "Influence") -> "Influence":
        """The influence over both sets of tokens together."""
        return Influence(
            self.count + other.count, self.cosine + other.cosine, self.angle + other.angle
        )

    @property
    def mean_cosine(self) -> float:
        return float(self.cosine) / self.count

    @property
    def mean_angle(self) -> float:
        """0: nothing is turned, 1: everything is reversed."""
        return float(self.angle) / self.count
