"""Random adapters in two pools: packed for the kernels, and plain in float64 as the reference."""

import runpy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from multilora import Linear, Pool, native

HARNESS = Path(__file__).parents[2] / "benchmarks/kernels_steps.py"
Pools = tuple[Pool, Pool]


@pytest.fixture(params=native.INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest, kernels: None) -> Iterator[str]:
    """Each instruction set that this processor has."""
    if not native.has(request.param):
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    next(name for name in native.INSTRUCTION_SETS if native.has(name))


@pytest.fixture
def make_pools(kernels: None) -> Callable[..., Pools]:
    """Make a packed pool and its float64 reference; both are empty."""

    def make(linears: Mapping[str, Linear], slots: int, dtype: torch.dtype) -> Pools:
        pool, reference = Pool(linears, slots, dtype), Pool(linears, slots, torch.float64)
        assert pool.packed
        assert not reference.packed
        return pool, reference

    return make


@pytest.fixture(scope="session")
def steps() -> dict[str, Any]:
    """The harness of random steps, which the benchmark runs too."""
    return runpy.run_path(str(HARNESS))


@pytest.fixture
def random_adapter(steps: dict[str, Any]) -> Callable[..., Any]:
    """Make random matrices of a rank for each slice, exact in `dtype`, some slices without."""
    function: Callable[..., Any] = steps["random_adapter"]
    return function
