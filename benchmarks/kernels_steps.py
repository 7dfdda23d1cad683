"""Random steps: no row may ever see an adapter that is not its own.

usage: python benchmarks/kernels_steps.py DTYPE COUNT SEED DEVICE    (prints the wrong rows)

Before each step a slot may be loaded, emptied or loaded again with another adapter of another rank,
and a composition may be pointed elsewhere.  Then a batch mixes rows of the base, of adapters and of
sums of adapters, and every row is compared with a float64 reference: rows of the base to the bit,
others to the tolerance of their dtype.  `tests/multilora/test_isolation.py` runs the same.
"""

import random
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from multilora import Batch, Compositions, Linear, Pool, apply_

LINEARS = {"qkv": Linear(48, (40, 16, 16)), "o": Linear(40, (48,)), "gate_up": Linear(48, (37, 37))}
SLOTS, COMPOSITIONS, MAX_PARTS = 6, 10, 4
MAX_ROWS = {"cpu": (40,), "cuda": (40, 160, 800)}  # on a GPU long steps have other kernels
RANKS = (1, 2, 4, 8, 11, 16, 32)
DISTINCT = 24  # adapters to choose from
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-3}  # relative to the row's largest value


def random_adapter(
    linears: Mapping[str, Linear], rank: int, dtype: torch.dtype, absent: float = 0.0
) -> dict[str, list[tuple[Tensor, Tensor] | None]]:
    """Matrices for each slice, exact in `dtype`; a share of the slices has none."""
    return {
        name: [
            None
            if torch.rand(()) < absent
            else (
                (torch.randn(rank, linear.inputs) / linear.inputs**0.5).to(dtype),
                (torch.randn(width, rank) / rank**0.5).to(dtype),
            )
            for width in linear.widths
        ]
        for name, linear in linears.items()
    }


class Steps:
    """A pool under change, its float64 twin, and the rows found wrong so far."""

    def __init__(self, dtype: torch.dtype, seed: int, device: str = "cpu") -> None:
        torch.manual_seed(seed)
        self.random, self.device = random.Random(seed), device
        self.adapters = [
            random_adapter(LINEARS, RANKS[i % len(RANKS)], dtype, absent=0.2)
            for i in range(DISTINCT)
        ]
        self.pool = Pool(LINEARS, SLOTS, dtype, device, max_rank=max(RANKS))
        self.exact = Pool(LINEARS, SLOTS, torch.float64)
        assert self.pool.packed, "python -m multilora.build"
        self.compositions = [Compositions(COMPOSITIONS, MAX_PARTS, d) for d in (device, "cpu")]
        self.batches = [Batch(c, max(MAX_ROWS[device])) for c in self.compositions]
        self.wrong_rows = 0

    def run(self, count: int) -> int:
        """Take steps, one batch for a linear in each; returns the wrong rows of all so far."""
        for _ in range(count):
            self.change_a_slot()
            self.point_a_composition_elsewhere()
            self.check(self.random.choice(list(LINEARS)))
        return self.wrong_rows

    def change_a_slot(self) -> None:
        slot = self.random.randrange(SLOTS)
        adapter: Any = self.random.choice([*self.adapters, None])
        for pool in (self.pool, self.exact):
            pool.unload(slot) if adapter is None else pool.load(slot, adapter)

    def point_a_composition_elsewhere(self) -> None:
        slots = self.random.sample(range(SLOTS), self.random.randint(0, MAX_PARTS))
        weights = [1.0]
        if len(slots) > 1:
            weights = [self.random.choice((0.5, -1.0, 2.0)) for _ in slots]
        index = self.random.randrange(COMPOSITIONS)
        for compositions in self.compositions:
            compositions.set(index, list(zip(slots, weights, strict=False)))

    def check(self, name: str) -> None:
        linear, dtype = LINEARS[name], self.pool.dtype
        count = self.random.randint(1, self.random.choice(MAX_ROWS[self.device]))
        rows = torch.randint(-1, COMPOSITIONS, (count,))
        for batch in self.batches:
            batch.update(rows)
        x = torch.randn(count, linear.inputs).to(dtype)
        before = torch.randn(count, sum(linear.widths)).to(dtype)
        expected, y = before.double(), before.to(self.device, copy=True)
        apply_(expected, x.double(), self.exact, name, self.batches[1])
        apply_(y, x.to(self.device), self.pool, name, self.batches[0])
        found = y.cpu()
        error = (found.double() - expected).abs().amax(1) / expected.abs().amax(1)
        right = (error <= TOLERANCE[dtype]) & ((rows >= 0) | (found == before).all(1))
        self.wrong_rows += int((~right).sum())


def main() -> None:
    dtype, count, seed, device = sys.argv[1:]
    torch.set_num_threads(1)
    with torch.inference_mode():
        print(Steps(getattr(torch, dtype), int(seed), device).run(int(count)))


if __name__ == "__main__":
    main()
