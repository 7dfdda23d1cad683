"""The GPU's kernels without a GPU: their source runs on an emulated one, thread by thread.

This shows that indices, fragments, barriers and sums are right, on small sizes.  Blocks and warps
fall behind by chance, which brings out many races, not all that hardware can.  It cannot show what
only hardware has: that launches succeed, or speed.
"""

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from multilora import Batch, Compositions, Linear, Pool, apply_, build
from multilora.pool import _pack

HERE = Path(__file__).parent
LINEAR = Linear(2088, (70, 8, 33))
RANKS = (8, 20, 48)
HEIGHTS = {  # by way through the kernels: how many rows a unit has at most
    "plain": 16,
    "plain float32": 16,
    "one node": 16,
    "one node with few blocks": 16,
    "two nodes": 16,
    "two nodes of high units": 64,
    "two nodes of high units with few blocks": 64,
}


@pytest.fixture(scope="session")
def emulate(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """Call a way through the kernels with tensors and numbers."""
    nvcc = shutil.which("nvcc")
    if nvcc is None or shutil.which("g++") is None:
        pytest.skip("nvcc or g++ is not on PATH")
    library = tmp_path_factory.mktemp("emulation") / "library.so"
    verbose = subprocess.run([nvcc, "--dryrun", "x.cu"], capture_output=True, text=True).stderr
    (top,) = (line.partition("=")[2] for line in verbose.splitlines() if line.startswith("#$ TOP="))
    include = [f"-I{path}" for path in (HERE, build.SOURCES[0], Path(top) / "include")]
    command = ["g++", "-std=c++20", "-O2", "-w", "-fPIC", "-shared", "-DMULTILORA_EMULATION"]
    subprocess.run([*command, *include, str(HERE / "emulate.cpp"), "-o", str(library)], check=True)
    function = ctypes.CDLL(str(library)).emulate
    function.restype = ctypes.c_bool

    def call(way: str, *tensors: torch.Tensor) -> None:
        assert function(way.encode(), *(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors))

    return call


class Case:
    """Random rows and adapters, what float64 makes of them, and what a way through the kernels."""

    def __init__(
        self,
        random_adapter: Callable[..., Any],
        dtype: torch.dtype,
        tokens: int,
        empty: Sequence[int] = (),
    ) -> None:
        torch.manual_seed(tokens)
        linears, slots, slices = {"linear": LINEAR}, len(RANKS), len(LINEAR.widths)
        exact, self.keep = Pool(linears, slots, torch.float64), []
        table = torch.zeros(slots, slices, 3, dtype=torch.int64)
        for slot, rank in enumerate(RANKS):
            adapter = random_adapter(linears, rank, dtype, absent=1 if slot in empty else 0.2)
            exact.load(slot, adapter)
            for number, matrices in enumerate(adapter["linear"]):
                if matrices is not None:
                    pair = [t.contiguous() for t in _pack(*matrices, dtype, on_gpu=True)]
                    self.keep.append(pair)
                    rank8 = 8 * pair[0].shape[0]
                    table[slot, number] = torch.tensor((*(t.data_ptr() for t in pair), rank8))
        self.compositions = Compositions(slots + 1, max_parts=2)
        for slot in range(slots):
            self.compositions.set(slot, [(slot, 1.0)])
        self.compositions.set(slots, [(1, 0.5), (2, -2.0)])
        self.batch, self.rows = Batch(self.compositions, tokens), torch.randint(-1, 4, (tokens,))
        self.batch.update(self.rows)
        self.x = torch.randn(tokens, LINEAR.inputs).to(dtype)
        self.y = torch.randn(tokens, sum(LINEAR.widths)).to(dtype)
        self.expected = self.y.double()
        apply_(self.expected, self.x.double(), exact, "linear", self.batch)
        columns = torch.tensor((0, *LINEAR.widths)).cumsum(0)
        self.tables = (table, columns, self.compositions.slots, self.compositions.weights)

    def by(self, emulate: Callable[..., None], way: str) -> torch.Tensor:
        y, (tokens, inputs), slices = self.y.clone(), self.x.shape, len(LINEAR.widths)
        stride = 24 + 48
        torch.ops.multilora.plan(self.rows, len(self.compositions), HEIGHTS[way], self.batch.plan)
        planes = torch.full((8 * tokens * slices * stride,), float("nan"))
        sizes = torch.tensor([tokens, inputs, y.shape[1], slices, 2, stride])
        emulate(way, y, self.x, *self.tables, self.batch.plan, planes, sizes)
        return y


@pytest.mark.parametrize("way", HEIGHTS)
@pytest.mark.parametrize("tokens", [1, 70])
def test_they_agree_with_float64(
    emulate: Callable[..., None],
    random_adapter: Callable[..., Any],
    kernels: None,
    way: str,
    tokens: int,
):
    dtype = torch.float32 if "float32" in way else torch.bfloat16
    case = Case(random_adapter, dtype, tokens)
    y = case.by(emulate, way)
    error = (y.double() - case.expected).abs().amax(1) / case.expected.abs().amax(1)
    assert error.max() <= (1e-5 if dtype == torch.float32 else 4e-3)
    assert torch.equal(y[case.rows < 0], case.y[case.rows < 0])


def test_all_ways_through_the_tensor_cores_give_the_same_bits(
    emulate: Callable[..., None], random_adapter: Callable[..., Any], kernels: None
):
    case = Case(random_adapter, torch.bfloat16, 70)
    first, *others = (case.by(emulate, way) for way in HEIGHTS if "plain" not in way)
    assert all(torch.equal(first, other) for other in others)


def test_a_unit_that_has_nothing_to_add_lets_no_block_run_ahead(
    emulate: Callable[..., None], random_adapter: Callable[..., Any], kernels: None
):
    case = Case(random_adapter, torch.bfloat16, 200, empty=[1])
    y = case.by(emulate, "one node with few blocks")
    error = (y.double() - case.expected).abs().amax(1) / case.expected.abs().amax(1)
    assert error.max() <= 4e-3
