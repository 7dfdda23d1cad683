"""Every prefix of the atoms is trained to be an adapter of its own: any rank can be served.

Valipour et al., "DyLoRA: Parameter-Efficient Tuning of Pre-trained Models using Dynamic
Search-Free Low-Rank Adaptation", EACL 2023, https://arxiv.org/abs/2210.07558, algorithm 1: each
step draws a rank b and trains the first b atoms at scale alpha / b, or with `frozen` the last of
them alone.  Compression `dylora` with `order: prefix` takes the ranks apart.
"""

# Shape suffixes:  R = atoms,  I = inputs and  O = outputs of the linear.

import random
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pruning.adapters.merging import seed_of
from pruning.adapters.train.tuned import Around, Setting, Tuned, side_a, side_b
from pruning.methods.training import NestedParams


@dataclass
class Drawn:
    """Of all atoms, the share that this step trains; all of them outside of steps."""

    share: float = 1.0
    frozen: bool = False

    def count(self, rank: int) -> int:
        """The atoms of a linear of this rank."""
        return max(1, round(self.share * rank))


class Rows(nn.Module):
    """A, of whose first rows only the last is trained where the others are frozen."""

    def __init__(self, drawn: Drawn):
        super().__init__()
        self._drawn = drawn

    def forward(self, a_RI: Tensor) -> Tensor:
        count = self._drawn.count(len(a_RI))
        if not self._drawn.frozen:
            return a_RI
        return torch.cat([a_RI[: count - 1].detach(), a_RI[count - 1 :]])


class Columns(nn.Module):
    """The first columns of B, at the scale of their number; the others are zero."""

    def __init__(self, drawn: Drawn):
        super().__init__()
        self._drawn = drawn

    def forward(self, b_OR: Tensor) -> Tensor:
        rank = b_OR.shape[1]
        count = self._drawn.count(rank)
        before = b_OR[:, : count - 1]
        if self._drawn.frozen:
            before = before.detach()
        kept = torch.cat([before, b_OR[:, count - 1 : count]], dim=1) * (rank / count)
        return torch.cat([kept, b_OR.new_zeros(len(b_OR), rank - count)], dim=1)


class Drawing(Around):
    """Draws the rank of each step."""

    def __init__(self, drawn: Drawn, rank: int, params: NestedParams, seed: int):
        self._drawn, self._rank, self._params, self._seed = drawn, rank, params, seed

    def before(self, step: int) -> None:
        number = random.Random(seed_of(self._seed, "rank", step)).randint(1, self._rank)
        self._drawn.share = number / self._rank
        self._drawn.frozen = self._params.frozen

    def after(self, rate: float) -> None:
        self._drawn.share, self._drawn.frozen = 1.0, False


def attach(tuned: Tuned, params: NestedParams, setting: Setting) -> Around:
    """All linears draw the same share of their ranks."""
    drawn, rank = Drawn(), max(len(start.a_RI) for start in tuned.starts.linears.values())
    for layer in tuned.layers.values():
        parametrize.register_parametrization(side_a(layer), "weight", Rows(drawn))
        parametrize.register_parametrization(side_b(layer), "weight", Columns(drawn))
    return Drawing(drawn, rank, params, setting.seed)
