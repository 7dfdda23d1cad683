"""The operation: numbers by hand, the float64 reference, and bits that do not depend on place."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from multilora import Batch, Compositions, Linear, Pool, apply_, reference

# Relative to the largest value of a row: float32 sums, and for bfloat16 the rounding of y.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-3}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
SHAPES = {  # by name: inputs and slices that fill whole blocks, and such that do not
    "even": Linear(64, (64,)),
    "odd": Linear(45, (33, 1, 70)),
    "wide": Linear(2048, (512, 128, 128)),
}


def batch_of(compositions: Compositions, rows: list[int]) -> Batch:
    batch = Batch(compositions, max_rows=max(len(rows), 1))
    batch.update(rows)
    return batch


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_composition_adds_its_adapters_by_weight(kernels: None, dtype: torch.dtype):
    pool = Pool({"linear": Linear(2, (1, 2))}, slots=2, dtype=dtype)
    one = torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0]])  # rank 1: 2 (x0 + x1)
    two = torch.eye(2), torch.tensor([[0.0, 1.0], [1.0, 0.0]])  # rank 2: swaps x0 and x1
    pool.load(0, {"linear": [one, None]})
    pool.load(1, {"linear": [None, two]})
    compositions = Compositions(2, max_parts=2)
    compositions.set(0, [(0, 1.0)])
    compositions.set(1, [(0, 0.5), (1, -1.0)])
    x = torch.tensor([[3.0, 5.0], [3.0, 5.0], [3.0, 5.0]], dtype=dtype)
    y = torch.ones(3, 3, dtype=dtype)
    apply_(y, x, pool, "linear", batch_of(compositions, [0, 1, -1]))
    assert y.tolist() == [[17.0, 1.0, 1.0], [9.0, -4.0, -2.0], [1.0, 1.0, 1.0]]


def test_without_the_kernels_torch_gives_the_same(
    kernels: None, random_adapter: Callable[..., Any]
):
    linears = {"linear": Linear(40, (24, 8))}
    pools = [Pool(linears, 3, torch.float32, packed=packed) for packed in (True, False)]
    assert [pool.packed for pool in pools] == [True, False]
    for slot in range(3):
        adapter = random_adapter(linears, 5 + slot, torch.float32)
        for pool in pools:
            pool.load(slot, adapter)
    x, batch = torch.randn(9, 40), batch_of(Compositions.of_slots(3), [0, 2, -1] * 3)
    packed, plain = torch.zeros(2, 9, 32)
    apply_(packed, x, pools[0], "linear", batch)
    apply_(plain, x, pools[1], "linear", batch)
    torch.testing.assert_close(packed, plain)


@DTYPES
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", [1, 3, 32, 100])
def test_it_agrees_with_float64_on_every_instruction_set(
    instruction_set: str,
    make_pools: Callable[..., tuple[Pool, Pool]],
    random_adapter: Callable[..., Any],
    dtype: torch.dtype,
    shape: str,
    tokens: int,
):
    torch.manual_seed(tokens)
    linears = {"linear": SHAPES[shape]}
    pool, exact = make_pools(linears, 5, dtype)
    for slot, rank in enumerate((1, 8, 13, 64, 20)):
        adapter = random_adapter(linears, rank, dtype, absent=0.2)
        pool.load(slot, adapter)
        exact.load(slot, adapter)
    compositions = Compositions(7, max_parts=3)
    for slot in range(5):
        compositions.set(slot, [(slot, 1.0)])
    compositions.set(5, [(0, 0.5), (3, -2.0), (4, 0.25)])  # exact in bfloat16 too
    batch = batch_of(compositions, torch.randint(-1, 7, (tokens,)).tolist())
    x = torch.randn(tokens, SHAPES[shape].inputs).to(dtype)
    y = torch.randn(tokens, sum(SHAPES[shape].widths)).to(dtype)
    before, expected = y.clone(), y.double()
    apply_(expected, x.double(), exact, "linear", batch)
    apply_(y, x, pool, "linear", batch)
    error = (y.double() - expected).abs().amax(1) / expected.abs().amax(1)
    assert error.max() <= TOLERANCE[dtype]
    assert torch.equal(y[batch.rows < 0], before[batch.rows < 0])


@DTYPES
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(st.integers(-1, 3), min_size=1, max_size=70), data=st.data())
def test_a_rows_result_is_the_same_bits_wherever_it_stands_and_whatever_is_around_it(
    make_pools: Callable[..., tuple[Pool, Pool]],
    random_adapter: Callable[..., Any],
    instruction_set: str,
    dtype: torch.dtype,
    rows: list[int],
    data: st.DataObject,
):
    torch.manual_seed(0)
    linears = {"linear": Linear(200, (90, 40))}
    pool, _ = make_pools(linears, 3, dtype)
    for slot, rank in enumerate((3, 16, 40)):
        pool.load(slot, random_adapter(linears, rank, dtype))
    compositions = Compositions(4, max_parts=2)
    for index, parts in enumerate([[(0, 1.0)], [(1, 1.0)], [(2, 1.0)], [(0, 0.3), (2, 0.7)]]):
        compositions.set(index, parts)
    x = torch.randn(len(rows), 200).to(dtype)
    together = torch.zeros(len(rows), 130, dtype=dtype)
    apply_(together, x, pool, "linear", batch_of(compositions, rows))
    order = data.draw(st.permutations(range(len(rows))))
    moved = torch.zeros_like(together)
    apply_(moved, x[order], pool, "linear", batch_of(compositions, [rows[i] for i in order]))
    assert torch.equal(moved, together[order])
    row = data.draw(st.integers(0, len(rows) - 1))
    alone = torch.zeros(1, 130, dtype=dtype)
    apply_(alone, x[row : row + 1], pool, "linear", batch_of(compositions, [rows[row]]))
    assert torch.equal(alone[0], together[row])


@DTYPES
def test_the_number_of_threads_changes_no_bit(
    kernels: None, random_adapter: Callable[..., Any], dtype: torch.dtype
):
    linears = {"linear": Linear(512, (600, 100))}
    pool = Pool(linears, 4, dtype)
    for slot in range(4):
        pool.load(slot, random_adapter(linears, 8 * (slot + 1), dtype))
    batch = batch_of(Compositions.of_slots(4), torch.randint(-1, 4, (150,)).tolist())
    x, threads, results = torch.randn(150, 512).to(dtype), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(torch.zeros(150, 700, dtype=dtype))
            apply_(results[-1], x, pool, "linear", batch)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_rows_may_lie_apart_in_memory(kernels: None, random_adapter: Callable[..., Any]):
    linears = {"linear": Linear(40, (24,))}
    pool = Pool(linears, 1, torch.float32)
    pool.load(0, random_adapter(linears, 4, torch.float32))
    batch = batch_of(Compositions.of_slots(1), [0, -1, 0])
    x, y = torch.randn(3, 50), torch.zeros(3, 60)
    expected = torch.zeros(3, 24)
    apply_(expected, x[:, 5:45].contiguous(), pool, "linear", batch)
    apply_(y[:, 10:34], x[:, 5:45], pool, "linear", batch)
    assert torch.equal(y[:, 10:34], expected)
    assert not y[:, :10].any()
    assert not y[:, 34:].any()


def test_what_a_base_row_holds_is_not_even_read(kernels: None, random_adapter: Callable[..., Any]):
    linears = {"linear": Linear(32, (32,))}
    pool = Pool(linears, 1, torch.float32)
    pool.load(0, random_adapter(linears, 8, torch.float32))
    x, y = torch.full((3, 32), float("nan")), torch.zeros(3, 32)
    x[1] = 1.0
    apply_(y, x, pool, "linear", batch_of(Compositions.of_slots(1), [-1, 0, -1]))
    assert y.isfinite().all()
    assert y[1].any()


def test_a_mismatch_of_dtype_or_shape_is_refused(kernels: None):
    pool = Pool({"linear": Linear(8, (8,))}, 1, torch.float32)
    batch = batch_of(Compositions.of_slots(1), [0])
    x, y = torch.zeros(1, 8), torch.zeros(1, 8)
    for wrong_y, wrong_x in ((y.bfloat16(), x), (torch.zeros(1, 9), x), (torch.zeros(2, 8), x)):
        with pytest.raises(RuntimeError):
            apply_(wrong_y, wrong_x, pool, "linear", batch)


def test_the_reference_gives_each_row_the_product_of_its_own_adapter():
    a, b = torch.randn(2, 3, 7, dtype=torch.float64), torch.randn(2, 5, 3, dtype=torch.float64)
    x, y = torch.randn(4, 7, dtype=torch.float64), torch.zeros(4, 5, dtype=torch.float64)
    rows = torch.tensor([1, -1, 0, 2])

    def adapter(slot: int, _: int) -> tuple[Tensor, Tensor]:
        return a[slot], b[slot]

    reference.apply_(y, x, rows, [[(0, 1.0)], [(1, 1.0)], [(0, 2.0), (1, 3.0)]], adapter, [5])
    products = [b[slot] @ a[slot] for slot in range(2)]
    expected = [products[1] @ x[0], 0 * y[1], products[0] @ x[2]]
    expected.append((2 * products[0] + 3 * products[1]) @ x[3])
    torch.testing.assert_close(y, torch.stack(expected))
