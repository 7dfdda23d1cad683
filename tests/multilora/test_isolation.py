"""No row ever sees an adapter that is not its own, while adapters and compositions come and go.

Random steps: before each one a slot may be loaded, emptied or loaded again with another adapter of
another rank, and a composition may be pointed elsewhere.  Then a batch mixes rows of the base, of
adapters and of sums of adapters, and every row is compared with the float64 reference.
"""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from multilora import Batch, Compositions, Linear, Pool, apply_

LINEARS = {"qkv": Linear(48, (40, 16, 16)), "o": Linear(40, (48,)), "gate_up": Linear(48, (37, 37))}
SLOTS, COMPOSITIONS, MAX_PARTS, MAX_ROWS = 6, 10, 4, 40
RANKS = (1, 2, 4, 8, 11, 16, 32)
DISTINCT = 24  # adapters to choose from
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-3}


class Steps:
    """A pool under change, its float64 twin, and the rows found wrong so far."""

    def __init__(self, pools: tuple[Pool, Pool], adapters: list[Any], seed: int) -> None:
        self.pools, self.adapters = pools, adapters
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.compositions = Compositions(COMPOSITIONS, MAX_PARTS)
        self.batch = Batch(self.compositions, MAX_ROWS)
        self.wrong_rows = 0

    def change_a_slot(self) -> None:
        slot = self.random.randrange(SLOTS)
        adapter = self.random.choice([*self.adapters, None])
        for pool in self.pools:
            pool.unload(slot) if adapter is None else pool.load(slot, adapter)

    def point_a_composition_elsewhere(self) -> None:
        slots = self.random.sample(range(SLOTS), self.random.randint(0, MAX_PARTS))
        weights = (
            [1.0] if len(slots) == 1 else [self.random.choice((0.5, -1.0, 2.0)) for _ in slots]
        )
        index = self.random.randrange(COMPOSITIONS)
        self.compositions.set(index, list(zip(slots, weights, strict=True)))

    def run(self, name: str) -> None:
        pool, exact = self.pools
        count = self.random.randint(1, MAX_ROWS)
        rows = torch.randint(-1, COMPOSITIONS, (count,), generator=self.generator)
        self.batch.update(rows)
        linear = LINEARS[name]
        x = torch.randn(count, linear.inputs, generator=self.generator).to(pool.dtype)
        y = torch.randn(count, sum(linear.widths), generator=self.generator).to(pool.dtype)
        expected = y.double()
        apply_(expected, x.double(), exact, name, self.batch)
        before = y.clone()
        apply_(y, x, pool, name, self.batch)
        error = (y.double() - expected).abs().amax(1) / expected.abs().amax(1)
        wrong = (error > TOLERANCE[pool.dtype]) | ((rows < 0) & (y != before).any(1))
        self.wrong_rows += int(wrong.sum())


@pytest.mark.parametrize(
    "count", [1000, pytest.param(50_000, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])]
)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_random_steps_have_no_wrong_row(
    make_pools: Callable[..., tuple[Pool, Pool]],
    random_adapter: Callable[..., Any],
    dtype: torch.dtype,
    count: int,
):
    torch.manual_seed(0)
    adapters = [
        random_adapter(LINEARS, RANKS[i % len(RANKS)], dtype, absent=0.2) for i in range(DISTINCT)
    ]
    steps = Steps(make_pools(LINEARS, SLOTS, dtype), adapters, seed=count)
    for _ in range(count):
        steps.change_a_slot()
        steps.point_a_composition_elsewhere()
        for name in LINEARS:
            steps.run(name)
    assert steps.wrong_rows == 0


def test_the_check_notices_a_single_row_with_the_adapter_of_another(
    make_pools: Callable[..., tuple[Pool, Pool]], random_adapter: Callable[..., Any]
):
    adapters = [random_adapter(LINEARS, 8, torch.float32) for _ in range(2)]
    steps = Steps(make_pools(LINEARS, SLOTS, torch.float32), adapters, seed=0)
    pool, exact = steps.pools
    pool.load(0, adapters[0])
    exact.load(0, adapters[1])
    steps.compositions.set(0, [(0, 1.0)])
    steps.run("o")
    assert steps.wrong_rows == int((steps.batch.rows == 0).sum()) > 0
