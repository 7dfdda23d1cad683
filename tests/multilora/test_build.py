"""The build: one small library over the stable ABI, and a package that works without it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from multilora import build, native

SCRIPT = """
import logging, torch
logging.basicConfig(format="%(message)s")
from pathlib import Path
from multilora import Batch, Compositions, Linear, Pool, apply_, native
native.LIBRARY = Path({library!r})
pool = Pool({{"linear": Linear(1, (1,))}}, 1, torch.float32)
pool.load(0, {{"linear": [(torch.tensor([[3.0]]), torch.tensor([[2.0]]))]}})
batch = Batch(Compositions.of_slots(1), 2)
batch.update([0, -1])
y = torch.zeros(2, 1)
apply_(y, torch.ones(2, 1), pool, "linear", batch)
print(y.flatten().tolist(), pool.packed)
"""


def run(library: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT.format(library=str(library))]
    return subprocess.run(
        ["env", *(f"{k}={v}" for k, v in environment.items()), *command],
        capture_output=True,
        text=True,
        check=True,
    )


def test_the_library_computes(kernels: None):
    assert run(native.LIBRARY).stdout.split("]") == ["[6.0, 0.0", " True\n"]


@pytest.mark.parametrize("content", [None, b"not a library"], ids=["missing", "broken"])
def test_without_a_library_torch_computes_and_one_line_says_so(
    tmp_path: Path, content: bytes | None
):
    library = tmp_path / "libmultilora.so"
    if content is not None:
        library.write_bytes(content)
    done = run(library)
    assert done.stdout.split("]") == ["[6.0, 0.0", " False\n"]
    assert done.stderr.count("no multi-adapter kernels") == 1


def test_an_instruction_set_that_the_processor_lacks_is_not_selected(kernels: None):
    assert not native.has("sse1024")
    assert "False" in run(native.LIBRARY, MULTILORA_ISA="sse1024").stdout


def test_it_needs_only_the_stable_abi_of_torch(kernels: None):
    if shutil.which("nm") is None:
        pytest.skip("nm is not on PATH")
    command = ["nm", "--dynamic", "--undefined-only", "--demangle", str(native.LIBRARY)]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "aoti_torch_" in symbols
    assert "at::" not in symbols
    assert "c10::" not in symbols
    assert "Py" not in symbols


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_with_nvcc_the_library_holds_kernels_that_spill_on_no_architecture(tmp_path: Path):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not on PATH")
    library = tmp_path / "libmultilora.so"
    report = build.build(build.SOURCES[0], library, build.GPUS)
    for gpu in build.GPUS:
        assert len(re.findall(rf"Compiling entry function .* for 'sm_{gpu}'", report)) == 5
    assert set(re.findall(r"(\d+) bytes spill", report)) == {"0"}
    assert library.stat().st_size < 5e6
    assert run(library).stdout.split("]") == ["[6.0, 0.0", " True\n"]


def test_without_a_compiler_the_build_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.CannotBuild, match=r"g\+\+ is not on PATH"):
        build.build(build.SOURCES[0], tmp_path / "library.so")
    assert not list(tmp_path.iterdir())


def test_nvcc_is_that_of_path_else_the_one_pip_put_beside_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(build, "TORCH", tmp_path / "site" / "torch")
    with pytest.raises(build.CannotBuild, match=r"pip install 'cuda-toolkit"):
        build._nvcc()
    for place in ("site/nvidia/cu13/bin", "bin"):
        nvcc = tmp_path / place / "nvcc"
        nvcc.parent.mkdir(parents=True)
        nvcc.touch(mode=0o755)
        assert build._nvcc() == str(nvcc)


def test_a_source_that_does_not_compile_leaves_the_old_library_in_place(
    kernels: None, tmp_path: Path
):
    sources, library = tmp_path / "csrc", tmp_path / "library.so"
    shutil.copytree(build.SOURCES[0], sources)
    for source in sources.glob("*.cpp"):
        source.write_text("#error this does not compile")
    library.write_bytes(b"old")
    with pytest.raises(build.CannotBuild, match="this does not compile"):
        build.build(sources, library)
    assert library.read_bytes() == b"old"
