"""Several adapters on one base in memory at a time: every row of a batch passes its own."""

# Shape suffixes:  W = rows of a batch,  T = tokens,  N = adapters,  R = atoms of the largest,
# I = inputs and  O = outputs of a linear.

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from pruning.adapters.algebra import Bag, Bags, bags_of
from pruning.adapters.atoms import Key, read
from pruning.adapters.compression import linear_of


class Mounted:
    """Adapters on a base; `choose` says before a batch which of them each of its rows passes."""

    numbers_W: Tensor

    def choose(self, numbers_W: Tensor) -> None:
        """By their numbers, on the device of the base; int64."""
        self.numbers_W = numbers_W


@contextmanager
def mounted(model: Any, adapters: Sequence[Path]) -> Iterator[Mounted]:
    """Let a base add to the rows of a batch what their adapters do, as PEFT would to each alone.

    The adapters are PEFT directories that fit the base.  No weight of the base is touched.
    """
    bags = [bags_of(read(directory, directory.name)) for directory in adapters]
    chosen, hooks = Mounted(), []
    for key in sorted({key for own in bags for key in own}):
        linear = linear_of(model, key)
        factors = (factor.to(linear.weight) for factor in _stacked(bags, key))
        hooks.append(linear.register_forward_hook(partial(_add, chosen, *factors)))
    try:
        yield chosen
    finally:
        for hook in hooks:
            hook.remove()


def _add(
    chosen: Mounted, a_NIR: Tensor, b_NRO: Tensor, module: Any, inputs: Any, outputs_WTO: Tensor
) -> Tensor:
    (inputs_WTI,), numbers_W = inputs, chosen.numbers_W
    return torch.baddbmm(outputs_WTO, inputs_WTI @ a_NIR[numbers_W], b_NRO[numbers_W])


def _stacked(bags: Sequence[Bags], key: Key) -> tuple[Tensor, Tensor]:
    """The factors of all adapters on a linear, zero where one has fewer atoms, or none."""
    present = [own[key] for own in bags if key in own]
    rank = max(bag.rank for bag in present)
    nothing = Bag(torch.zeros_like(present[0].a_RI[:0]), torch.zeros_like(present[0].b_OR[:, :0]))
    each = [own.get(key, nothing) for own in bags]
    return (
        torch.stack([pad(bag.a_RI.T, (0, rank - bag.rank)) for bag in each]),
        torch.stack([pad(bag.b_OR.T, (0, 0, 0, rank - bag.rank)) for bag in each]),
    )
