"""What only a GPU can show: random steps there, captured graphs, one order of sums."""

from typing import Any

import pytest
import torch

from multilora import Batch, Compositions, Linear, Pool, apply_, native

pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() and native.available("cuda")),
    reason="no GPU, or a library without CUDA kernels: python -m multilora.build --cuda",
)
LINEARS = {"qkv": Linear(2048, (2048, 512, 512))}
SLOTS, RANKS = 8, (1, 2, 4, 8, 11, 16, 32, 64)


def pools(steps: dict[str, Any]) -> tuple[Pool, Pool, Any]:
    """One on the GPU, its float64 twin, and what loads both."""
    pool = Pool(LINEARS, SLOTS, torch.bfloat16, "cuda", max_rank=max(RANKS))
    exact = Pool(LINEARS, SLOTS, torch.float64)

    def load(slot: int, rank: int) -> None:
        adapter = steps["random_adapter"](LINEARS, rank, torch.bfloat16, absent=0.2)
        for one in (pool, exact):
            one.load(slot, adapter)

    for slot, rank in enumerate(RANKS):
        load(slot, rank)
    return pool, exact, load


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_random_steps_have_no_wrong_row(steps: dict[str, Any], dtype: torch.dtype):
    assert steps["Steps"](dtype, seed=0, device="cuda").run(500) == 0


@pytest.mark.parametrize("tokens", [1, 7, 64, 200, 600])
def test_a_captured_graph_follows_plans_loads_and_compositions(steps: dict[str, Any], tokens: int):
    torch.manual_seed(tokens)
    pool, exact, load = pools(steps)
    compositions = [Compositions(SLOTS + 1, 2, device) for device in ("cuda", "cpu")]
    for one in compositions:
        for slot in range(SLOTS):
            one.set(slot, [(slot, 1.0)])
    batches = [Batch(one, tokens) for one in compositions]
    x = torch.randn(tokens, 2048, dtype=torch.bfloat16, device="cuda")
    y = torch.zeros(tokens, 3072, dtype=torch.bfloat16, device="cuda")
    batches[0].update([0] * tokens)
    apply_(y, x, pool, "qkv", batches[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        apply_(y, x, pool, "qkv", batches[0])
    for turn, share in enumerate((1.0, 0.5, 0.1, 0.0)):  # of the rows that have a composition
        load(turn, RANKS[-1 - turn])
        for one in compositions:
            one.set(SLOTS, [(turn, 2.0), (turn + 3, 0.25)])
        rows = torch.randint(0, SLOTS + 1, (tokens,))
        rows[torch.rand(tokens) >= share] = -1
        for batch in batches:
            batch.update(rows)
        x.normal_()
        before = torch.randn(tokens, 3072).bfloat16()
        expected = before.double()
        apply_(expected, x.cpu().double(), exact, "qkv", batches[1])
        y.copy_(before)
        graph.replay()
        error = (y.cpu().double() - expected).abs().amax(1) / expected.abs().amax(1)
        assert error.max() <= steps["TOLERANCE"][torch.bfloat16]
        assert torch.equal(y.cpu()[rows < 0], before[rows < 0])


def test_a_row_has_the_same_bits_in_batches_of_every_size(steps: dict[str, Any]):
    torch.manual_seed(0)
    pool, _, _ = pools(steps)
    batch = Batch(Compositions.of_slots(SLOTS, "cuda"), 2048)
    x = torch.randn(2048, 2048).bfloat16()
    rows = torch.randint(-1, SLOTS, (2048,))

    def deltas(which: torch.Tensor) -> torch.Tensor:
        batch.update(rows[which])
        y = torch.zeros(len(which), 3072, dtype=torch.bfloat16, device="cuda")
        apply_(y, x[which].cuda(), pool, "qkv", batch)
        return y.cpu()

    of_all = deltas(torch.arange(2048))
    for tokens in (1, 5, 16, 63, 130, 511, 513, 1000):
        which = torch.randperm(2048)[:tokens]
        assert torch.equal(deltas(which), of_all[which])


def test_units_that_have_nothing_to_add_hold_up_nobody(steps: dict[str, Any]):
    torch.manual_seed(0)
    pool, exact, _ = pools(steps)
    for one in (pool, exact):
        one.unload(1)
    several = [Compositions(200, 1, device) for device in ("cuda", "cpu")]  # more than clusters
    x, rows = torch.randn(200, 2048).bfloat16(), torch.arange(200)
    y, expected = torch.zeros(200, 3072).bfloat16().cuda(), torch.zeros(200, 3072).double()
    for one, deltas, of_it, inputs in zip(
        several, (y, expected), (pool, exact), (x.cuda(), x.double()), strict=True
    ):
        for composition in range(200):
            one.set(composition, [(composition // 2 % SLOTS, 1.0)])
        batch = Batch(one, 200)
        batch.update(rows)
        apply_(deltas, inputs, of_it, "qkv", batch)
    error = (y.cpu().double() - expected).abs().amax(1)
    assert (error <= steps["TOLERANCE"][torch.bfloat16] * expected.abs().amax(1)).all()
