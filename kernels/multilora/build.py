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
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from multilora.native import LIBRARY

SOURCES = (Path(__file__).parents[1] / "csrc", Path(sys.prefix) / "share/graftwork/csrc")
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"]
CPU = {
    "ops.cpp": [],
    "cpu.cpp": [],
    "avx2.cpp": ["-mavx2", "-mfma"],
    "avx512.cpp": AVX512,
    "avx512_bf16.cpp": [*AVX512, "-mavx512bf16"],
}
# GCC 12 warns of its own intrinsics.
WARNINGS = ["-Wall", "-Wextra", "-Wno-maybe-uninitialized"]
STABLE = "-DTORCH_TARGET_VERSION=0x020d000000000000"  # the ABI of torch 2.13
GPUS = ("80", "86", "89", "90a", "100", "120")


class CannotBuild(Exception):
    """Something that the build needs is missing; the message says what."""


def build(sources: Path, target: Path = LIBRARY, gpus: Sequence[str] = ()) -> None:
    """Compile `sources` into the shared object `target`, with CUDA kernels for `gpus`.

    Raises CannotBuild when a compiler is missing, the machine is no x86-64, or a compiler fails.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        raise CannotBuild(f"there are no kernels for {platform.machine()}")
    compiler = _find(os.environ.get("CXX", "g++"))
    nvcc = _find("nvcc") if gpus else ""
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        commands = [
            [compiler, *_flags(sources, bool(gpus)), *flags, "-c", str(sources / name)]
            for name, flags in CPU.items()
        ]
        commands += [[nvcc, *_cuda_flags(gpus), "-c", str(path)] for path in _cuda(sources, gpus)]
        objects = [work / f"{Path(command[-1]).name}.o" for command in commands]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(
                pool.map(_run, (c + ["-o", str(o)] for c, o in zip(commands, objects, strict=True)))
            )
        linker = [nvcc, "-shared", "--cudart=static", "-Xlinker=-s"] if gpus else None
        linker = linker or [compiler, "-shared", "-s"]
        library = work / target.name
        _run([*linker, *map(str, objects), *_libraries(), "-o", str(library)])
        # in place at once, so that a running process keeps the file that it has mapped
        shutil.copy(library, target.with_suffix(".new"))
        target.with_suffix(".new").replace(target)


def _flags(sources: Path, cuda: bool) -> list[str]:
    include = f"-isystem{Path(torch.__file__).parent / 'include'}"
    flags = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", *WARNINGS, STABLE, include]
    return flags + (["-DMULTILORA_CUDA"] if cuda else [])


def _cuda(sources: Path, gpus: Sequence[str]) -> Iterable[Path]:
    return sorted(sources.glob("*.cu")) if gpus else ()


def _cuda_flags(gpus: Sequence[str]) -> list[str]:
    include = f"-isystem={Path(torch.__file__).parent / 'include'}"
    flags = ["-std=c++20", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", STABLE, include]
    return flags + [f"-gencode=arch=compute_{gpu},code=sm_{gpu}" for gpu in gpus]


def _libraries() -> list[str]:
    return [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu"]


def _find(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise CannotBuild(f"{program} is not on PATH")
    return path


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CannotBuild(f"{' '.join(command)}\n{done.stderr}")


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
