"""The GPU's kernels without a GPU: their source runs on an emulated one, thread by thread.

This shows that indices, fragments, barriers and sums are right, on small sizes.  It cannot show
what only hardware has: that launches succeed, races that its scheduling would bring out, or speed.
"""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from multilora import Batch, Compositions, Linear, Pool, apply_, build
from multilora.pool import _pack

HERE = Path(__file__).parent
LINEAR = Linear(168, (70, 8, 33))
RANKS = (8, 20, 48)
HEIGHTS = {  # by way through the kernels; the last is a graph for more rows than the step has
    "plain": 16,
    "plain float32": 16,
    "decode": 16,
    "fused decode": 16,
    "prefill": 64,
    "prefill with few blocks": 16,
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

    def call(way: str, *tensors: torch.Tensor) -> None:
        function(way.encode(), *(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors))

    return call


@pytest.mark.parametrize("way", HEIGHTS)
@pytest.mark.parametrize("tokens", [1, 70])
def test_they_agree_with_float64(
    emulate: Callable[..., None],
    random_adapter: Callable[..., Any],
    kernels: None,
    way: str,
    tokens: int,
):
    torch.manual_seed(tokens)
    dtype = torch.float32 if "float32" in way else torch.bfloat16
    linears, slots, slices = {"linear": LINEAR}, len(RANKS), len(LINEAR.widths)
    exact = Pool(linears, slots, torch.float64)
    table, keep = torch.zeros(slots, slices, 3, dtype=torch.int64), []
    for slot, rank in enumerate(RANKS):
        adapter = random_adapter(linears, rank, dtype, absent=0.2)
        exact.load(slot, adapter)
        for number, matrices in enumerate(adapter["linear"]):
            if matrices is not None:
                pair = [t.contiguous() for t in _pack(*matrices, dtype, on_gpu=True)]
                keep.append(pair)
                rank8 = 8 * pair[0].shape[0]
                table[slot, number] = torch.tensor((*(t.data_ptr() for t in pair), rank8))
    compositions = Compositions(slots + 1, max_parts=2)
    for slot in range(slots):
        compositions.set(slot, [(slot, 1.0)])
    compositions.set(slots, [(1, 0.5), (2, -2.0)])
    stride = 24 + 48
    batch = Batch(compositions, tokens)
    rows = torch.randint(-1, slots + 1, (tokens,))
    batch.update(rows)
    torch.ops.multilora.plan(rows, len(compositions), HEIGHTS[way], batch.plan)
    x = torch.randn(tokens, LINEAR.inputs).to(dtype)
    y = torch.randn(tokens, sum(LINEAR.widths)).to(dtype)
    before, expected = y.clone(), y.double()
    apply_(expected, x.double(), exact, "linear", batch)
    columns = torch.tensor((0, *LINEAR.widths)).cumsum(0)
    planes = torch.full((8 * tokens * slices * stride,), float("nan"))
    sizes = torch.tensor([tokens, *x.shape[1:], *y.shape[1:], slices, 2, stride])
    tables = (table, columns, compositions.slots, compositions.weights)
    emulate(way, y, x, *tables, batch.plan, planes, sizes)
    error = (y.double() - expected).abs().amax(1) / expected.abs().amax(1)
    assert error.max() <= (1e-5 if dtype == torch.float32 else 4e-3)
    assert torch.equal(y[rows < 0], before[rows < 0])
