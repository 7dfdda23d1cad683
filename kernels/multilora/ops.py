"""The one operation: y += sum of w B (A x), each row with its own composition of adapters."""

import torch
from torch import Tensor

from multilora import reference
from multilora.batch import Batch
from multilora.pool import Pool


def apply_(y: Tensor, x: Tensor, pool: Pool, name: str, batch: Batch) -> None:
    """Add to y (T, outputs of all slices) what the adapters make of x (T, inputs), in place.

    Rows of -1 are not touched, not even read.  Sums are float32, in an order that depends neither
    on a row's place nor on the other rows, so neither does a bit of the result.  Raises ValueError
    for x of another dtype than the pool's, RuntimeError for shapes that do not fit.
    """
    if x.dtype != pool.dtype:
        raise ValueError(f"the pool has {pool.dtype}, x has {x.dtype}")
    if not batch.adapted:
        return
    compositions = batch.compositions
    if pool.packed:
        torch.ops.multilora.apply_(
            y,
            x,
            pool.tables[name],
            pool.columns[name],
            compositions.slots,
            compositions.weights,
            batch.plan,
            pool.max_rank * compositions.slots.shape[1],
        )
        return
    reference.apply_(
        y,
        x,
        batch.rows,
        compositions.parts(),
        lambda slot, number: pool.plain(name, slot, number),
        pool.linears[name].widths,
    )
