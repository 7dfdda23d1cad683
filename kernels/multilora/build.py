"""Compiles the kernels ahead of time: python -m multilora.build [--cuda] [--sources DIR].

The result is one shared object over PyTorch's stable ABI, beside this file.  It needs g++ and the
headers of the installed torch; with --cuda also nvcc, and then it holds the CUDA kernels too.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from multilora.native import LIBRARY

TORCH = Path(torch.__file__).parent
SOURCES = (Path(__file__).parents[1] / "csrc", Path(sys.prefix) / "share/graftwork/csrc")
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"]
CPU = {
    "ops.cpp": [],
    "cpu.cpp": [],
    "avx2.cpp": ["-mavx2", "-mfma"],
    "avx512.cpp": AVX512,
    "avx512_bf16.cpp": [*AVX512, "-mavx512bf16"],
}
CUDA = "cuda.cu"
COMPILE = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden"]
STABLE = "-DTORCH_TARGET_VERSION=0x020d000000000000"  # the ABI of torch 2.13
GPUS = ("80", "86", "89", "90a", "100", "120")


class CannotBuild(Exception):
    """Something that the build needs is missing; the message says what."""


def build(sources: Path, target: Path = LIBRARY, gpus: Sequence[str] = ()) -> str:
    """Compile `sources` into the shared object `target`, with CUDA kernels for `gpus`.

    Returns what the compilers said: of CUDA kernels, registers and spills.  Raises CannotBuild
    when a compiler is missing, the machine is no x86-64, or a compiler fails.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        raise CannotBuild(f"there are no kernels for {platform.machine()}")
    compiler = _find(os.environ.get("CXX", "g++"))
    compile_ = {name: [compiler, *COMPILE, *flags] for name, flags in CPU.items()}
    link = [compiler, "-shared", "-s"]
    if gpus:
        nvcc = _nvcc()
        compile_[CUDA] = [nvcc, *_cuda_flags(gpus)]
        link = [nvcc, "-shared", "--cudart=static", "-Xlinker=-s"]
        link.append(f"-L{Path(nvcc).resolve().parents[1] / 'lib'}")  # pip's does not look there
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        commands = [
            [*command, STABLE, f"-I{TORCH / 'include'}", "-c", str(sources / name)]
            + ["-o", str(work / f"{name}.o")]
            for name, command in compile_.items()
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            said = list(pool.map(_run, commands))
        library = work / target.name
        objects = [str(work / f"{name}.o") for name in compile_]
        _run([*link, *objects, f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-o", str(library)])
        # in place at once, so that a running process keeps the file that it has mapped
        copied = shutil.copy(library, target.with_suffix(f".{os.getpid()}"))
        Path(copied).replace(target)
    return "".join(said)


def _cuda_flags(gpus: Sequence[str]) -> list[str]:
    newest = gpus[-1]  # also as PTX, for what comes after it
    codes = [f"-gencode=arch=compute_{gpu},code=sm_{gpu}" for gpu in gpus]
    codes.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
    flags = ["-std=c++20", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", "-Xptxas=-v"]
    return [*flags, f"--threads={os.cpu_count()}", *codes]


def _nvcc() -> str:
    """That of PATH, else the one that pip has put beside torch."""
    beside = next(TORCH.parent.glob("nvidia/cu*/bin/nvcc"), None)
    path = shutil.which("nvcc") or beside
    if path is None:
        raise CannotBuild("nvcc is not on PATH (pip install 'cuda-toolkit[cccl,nvcc]' has one too)")
    return str(path)


def _find(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise CannotBuild(f"{program} is not on PATH")
    return path


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CannotBuild(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout + done.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m multilora.build")
    parser.add_argument("--cuda", action="store_true", help="with the CUDA kernels; needs nvcc")
    parser.add_argument("--sources", type=Path, metavar="DIR", help="where the sources are")
    options = parser.parse_args()
    known = [options.sources] if options.sources else SOURCES
    try:
        sources = next((path for path in known if (path / "ops.cpp").is_file()), None)
        if sources is None:
            raise CannotBuild(f"there are no sources in {' or '.join(map(str, known))}")
        build(sources, gpus=GPUS if options.cuda else ())
    except CannotBuild as problem:
        sys.exit(f"multilora: the kernels were not built, torch serves instead: {problem}")
    print(f"multilora: built {LIBRARY}")


if __name__ == "__main__":
    main()
