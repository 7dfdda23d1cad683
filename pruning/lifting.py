"""The way back from a slim base to the dense geometry, for the cuts of a schedule to come.

Units that left are not zero but a small fraction of what they were: they rank last, and a plan that
takes one back finds weights that training can move.  The idea of shrinking instead of zeroing is
that of Wang et al., "Iterative Soft Shrinkage Learning for Efficient Image Super-Resolution", ICCV
2023, https://arxiv.org/abs/2303.09650.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from pruning.plan import Plan
from pruning.slicing import write_base
from pruning.units import selections
from pruning.weights.checkpoint import Checkpoint
from pruning.weights.rewriting import WEIGHTS
from pruning.weights.tensors import expected
from pruning.weights.writer import Entry

SHRINK = 0.1  # of each linear that a unit runs through, so its output is a hundredth or less


def lift(base: Checkpoint, plan: Plan, slim: Path, destination: Path) -> None:
    """Write `base` with the weights of `slim`, which `plan` cut from it, where units stayed.

    Where they left, weights are SHRINK times those of `base`.  No layer may have lost a whole
    block, and none has gained a bias.  One tensor in memory.
    """
    lifted = _Lifted(base, plan, slim / WEIGHTS)
    entries = [
        Entry(name, base.dtype(name), shape, partial(lifted.tensor, name))
        for name, shape in expected(base.geometry)
    ]
    write_base(destination, entries, base.config, base.directory, lambda fraction, message: None)


@dataclass(frozen=True)
class _Lifted:
    base: Checkpoint
    plan: Plan
    slim: Path

    def tensor(self, name: str) -> Tensor:
        with safe_open(self.slim, framework="pt") as file:
            kept: Tensor = file.get_tensor(name)
        whole = self.base.tensor(name)
        if kept.shape == whole.shape:
            return kept
        _, _, layer, _, linear, _ = name.split(".")
        index = int(layer)
        selection = selections(self.base.geometry, index, self.plan.layers[index])[linear]
        rows = torch.tensor(selection.indices)
        return (whole * SHRINK).index_copy_(selection.axis, rows, kept)
