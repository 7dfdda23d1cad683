"""Pool, compositions and plan: what the kernels are told."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multilora import Batch, Compositions, Linear, Pool
from multilora.batch import HEIGHT

LINEARS = {"qkv": Linear(48, (40, 8, 8)), "o": Linear(40, (48,))}


def test_an_adapter_occupies_its_own_rank_rounded_to_eight_and_not_the_largest(
    kernels: None, random_adapter: Callable[..., Any]
):
    pool = Pool({"linear": Linear(64, (64,))}, slots=2, dtype=torch.float32)
    pool.load(0, random_adapter(pool.linears, 64, torch.float32))
    assert pool.nbytes == 2 * 64 * 64 * 4
    pool.load(0, random_adapter(pool.linears, 9, torch.float32))
    assert pool.nbytes == 2 * 64 * 16 * 4
    pool.unload(0)
    assert pool.nbytes == 0


def test_the_tables_stay_where_they_are_while_adapters_come_and_go(
    kernels: None, random_adapter: Callable[..., Any]
):
    pool = Pool(LINEARS, slots=2, dtype=torch.bfloat16)
    addresses = {name: table.data_ptr() for name, table in pool.tables.items()}
    for rank in (4, 32):
        pool.load(1, random_adapter(LINEARS, rank, torch.bfloat16))
        assert pool.tables["qkv"][1, :, 2].tolist() == [-(-rank // 8) * 8] * 3
        assert not pool.tables["qkv"][0].any()
    pool.unload(1)
    assert not pool.tables["qkv"].any()
    assert {name: table.data_ptr() for name, table in pool.tables.items()} == addresses


def test_a_pool_with_room_from_the_start_keeps_its_place(
    kernels: None, random_adapter: Callable[..., Any]
):
    pool = Pool({"linear": Linear(40, (33,))}, 2, torch.float32, max_rank=12)
    places = set()
    for rank in (3, 12, 9):
        pool.load(1, random_adapter(pool.linears, rank, torch.float32))
        places.add(int(pool.tables["linear"][1, 0, 0]))
    assert len(places) == 1
    with pytest.raises(ValueError, match="room for rank 16, not 17"):
        pool.load(1, random_adapter(pool.linears, 17, torch.float32))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"k": [None]}, "the pool has no linear k"),
        ({"o": [None, None]}, "o has 1 slices, not 2"),
        ({"o": [(torch.zeros(4, 40), torch.zeros(48, 5))]}, "o: A and B have shapes"),
        ({"o": [(torch.zeros(4, 39), torch.zeros(48, 4))]}, "o: A and B have shapes"),
        ({"o": [(torch.zeros(4, 40), torch.zeros(47, 4))]}, "o: A and B have shapes"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_slot_keeps_its_adapter(
    kernels: None, random_adapter: Callable[..., Any], weights: Any, message: str
):
    pool = Pool(LINEARS, slots=1, dtype=torch.float32)
    pool.load(0, random_adapter(LINEARS, 8, torch.float32))
    before = {name: table.clone() for name, table in pool.tables.items()}
    with pytest.raises(ValueError, match=message):
        pool.load(0, weights)
    assert all(torch.equal(table, before[name]) for name, table in pool.tables.items())


def test_a_composition_can_be_pointed_elsewhere():
    compositions = Compositions(2, max_parts=3)
    compositions.set(1, [(4, 0.5), (2, -1.0), (0, 2.0)])
    compositions.set(1, [(3, 1.0)])
    assert compositions.parts() == [[], [(3, 1.0)]]
    with pytest.raises(ValueError, match="at most 3 parts, not 4"):
        compositions.set(0, [(0, 1.0)] * 4)


@settings(max_examples=50, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(st.integers(-1, 4), max_size=150))
def test_a_plan_holds_each_adapted_row_once_in_units_of_one_composition(
    kernels: None, rows: list[int]
):
    batch = Batch(Compositions.of_slots(5), max_rows=150)
    batch.update(rows)
    num_units, num_rows = batch.plan[:2].tolist()
    order, units = batch.plan[2:152].tolist(), batch.plan[152:].view(-1, 3).tolist()[:num_units]
    covered = []
    for composition, first, count in units:
        assert 0 < count <= HEIGHT
        members = order[first : first + count]
        assert {rows[t] for t in members} == {composition}
        covered += members
    assert covered == sorted(covered, key=lambda t: (rows[t], t))
    assert sorted(covered) == [t for t, row in enumerate(rows) if row >= 0]
    assert num_rows == len(covered)


@pytest.mark.parametrize("rows", [[0] * 5, [2], [-2]], ids=["too many", "unknown", "negative"])
def test_rows_that_cannot_be_planned_are_refused(kernels: None, rows: list[int]):
    with pytest.raises(RuntimeError):
        Batch(Compositions.of_slots(2), max_rows=4).update(rows)
