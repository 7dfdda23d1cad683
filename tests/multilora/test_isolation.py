"""No row ever sees an adapter that is not its own, while adapters and compositions come and go.

The steps are those of benchmarks/kernels_steps.py, which takes a hundred thousand of them.
"""

from typing import Any

import pytest
import torch

from multilora import Linear


@pytest.mark.parametrize(
    "count", [2000, pytest.param(50_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_random_steps_have_no_wrong_row(
    kernels: None, steps: dict[str, Any], dtype: torch.dtype, count: int
):
    assert steps["Steps"](dtype, seed=count).run(count) == 0


def test_the_check_notices_a_single_row_with_the_adapter_of_another(
    kernels: None, steps: dict[str, Any]
):
    run = steps["Steps"](torch.float32, seed=0)
    linears: dict[str, Linear] = steps["LINEARS"]
    mine, other = (steps["random_adapter"](linears, 8, torch.float32) for _ in range(2))
    run.pool.load(0, mine)
    run.exact.load(0, other)
    for compositions in run.compositions:
        compositions.set(0, [(0, 1.0)])
    run.check("o")
    assert run.wrong_rows == int((run.batches[0].rows == 0).sum()) > 0
