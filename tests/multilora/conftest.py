"""Random adapters in two pools: packed for the kernels, and plain in float64 as the reference."""

from collections.abc import Callable, Iterator, Mapping

import pytest
import torch
from torch import Tensor

from multilora import Linear, Pool, native

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


@pytest.fixture
def random_adapter() -> Callable[..., dict[str, list[tuple[Tensor, Tensor] | None]]]:
    """Make random matrices of a rank for each slice, exact in `dtype`, some slices without."""

    def make(
        linears: Mapping[str, Linear], rank: int, dtype: torch.dtype, absent: float = 0.0
    ) -> dict[str, list[tuple[Tensor, Tensor] | None]]:
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

    return make
