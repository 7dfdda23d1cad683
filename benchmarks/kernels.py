"""Multi-adapter kernels against vLLM's own operators: by linear, in random steps, in an engine.

usage: python benchmarks/kernels.py [--quick] [--steps N] [--json FILE] [--dry-gpu]

On a CPU it writes results/kernels_cpu.json, on a GPU results/kernels_GPU.json:

by linear     benchmarks/kernels_ops.py says how.  `decode_speedup` is the geometric mean of theirs
              over ours in the decode batches (1 to 256 tokens), `decode_speedup_min` the least,
              `prefill_speedup` and its `_min` the same for prefill; with `_2_threads` behind, on
              two threads and the cases of --quick.  `decode_byte_floor_share` is the geometric mean
              of the time in which memory gives the adapters of a batch, over ours.
random steps  benchmarks/kernels_steps.py: `wrong_rows` of `random_steps`, half of them in bfloat16.
in an engine  benchmarks/kernels_engine.py says how: `engine_with_over_without_16`, the same for
              vLLM's own wrapper as `stock_with_over_without_16`, and `ours_over_stock`.
build         `build_seconds`, and `so_mib` of the library.

On a GPU theirs is Triton: `decode_vs_triton_default64` with the default flags and max_loras 64,
`decode_vs_triton_best` and `prefill_vs_triton_best` against the best of that and two specialized
settings, case by case; `worst_cell` is the least of the latter in decode, `byte_floor_share` the
geometric mean where the floor is at least 8 microseconds.  --dry-gpu goes that way on a CPU, with
vLLM's CPU operators in the place of Triton and few cases, to check this script: its figures mean
nothing, and it writes none.
"""

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import report
import torch
from kernels_ops import CPU, GPU, RIVALS, Setting, Sides, bandwidth_of, cases, measure, torch_ops

from multilora import build, native

HERE = Path(__file__).parent
Rows = list[dict[str, Any]]
Figures = dict[str, Any]


def by_linear(setting: Setting, rivals: dict[str, Any], quick: bool, threads: int = 1) -> Rows:
    """A row for each case."""
    torch.set_num_threads(threads)
    bandwidth, rows = bandwidth_of(setting.device), []
    key = lambda case: (case.linear, case.dtype, case.ranks)  # noqa: E731
    with torch.inference_mode():
        for _, group in itertools.groupby(cases(setting, quick), key):
            members = list(group)
            sides = Sides(setting, members[0])
            for case in members:
                row = measure(case, sides, rivals, bandwidth, 3 if quick else 5)
                rows.append({"threads": threads, **row})
                print(json.dumps(rows[-1]), flush=True)
    return rows


def random_steps(count: int, device: str) -> Figures:
    """Both dtypes at once, in a process for each processor."""
    script = [sys.executable, str(HERE / "kernels_steps.py")]
    seeds = max(1, (os.cpu_count() or 1) // 2)
    steps = count // 2 // seeds
    running = [
        subprocess.Popen([*script, dtype, str(steps), str(seed), device], stdout=subprocess.PIPE)
        for dtype in ("float32", "bfloat16")
        for seed in range(seeds)
    ]
    wrong = sum(int(process.communicate()[0]) for process in running)
    return {"random_steps": steps * len(running), "wrong_rows": wrong}


def in_an_engine(quick: bool) -> tuple[Figures, Rows]:
    with tempfile.TemporaryDirectory() as directory:
        found = Path(directory) / "kernels_engine.json"
        command = [sys.executable, str(HERE / "kernels_engine.py"), "--json", str(found)]
        subprocess.run(command + ["--quick"] * quick, check=True)
        said = json.loads(found.read_text())
    return said["figures"], said["rows"]


def built() -> Figures:
    """Seconds of a build for the CPU alone, and the size of the library."""
    with tempfile.TemporaryDirectory() as directory:
        library, started = Path(directory) / "library.so", time.monotonic()
        build.build(build.SOURCES[0], library)
        seconds = time.monotonic() - started
        size = library.stat().st_size
    return {"build_seconds": round(seconds, 1), "so_mib": round(size / 2**20, 3)}


def on_cpu(options: argparse.Namespace) -> tuple[Figures, Rows]:
    chosen = os.environ.get("MULTILORA_ISA") or next(filter(native.has, native.INSTRUCTION_SETS))
    engine_figures, engine_rows = in_an_engine(options.quick)
    print(json.dumps(engine_figures), flush=True)
    one = by_linear(CPU, RIVALS["cpu"], options.quick)
    two = [] if options.quick else by_linear(CPU, RIVALS["cpu"], quick=True, threads=2)
    figures = {
        "instruction_set": chosen,
        "cases": len(one) + len(two),
        **speedups(one),
        **{f"{name}_2_threads": value for name, value in (speedups(two) if two else {}).items()},
        "decode_byte_floor_share": geometric_mean(r["byte_floor_share"] for r in decode(one)),
        **random_steps(options.steps, "cpu"),
        **engine_figures,
        **built(),
    }
    return figures, [*one, *two, *engine_rows]


def on_gpu(options: argparse.Namespace) -> tuple[Figures, Rows]:
    setting, rivals = GPU, RIVALS["cuda"]
    if options.dry_gpu:
        setting = replace(GPU, device="cpu", prefill=GPU.prefill[:1], cache_bytes=1 << 20)
        rivals = dict.fromkeys(rivals, torch_ops)
    rows = by_linear(setting, rivals, options.quick)
    best = [r["speedup"] for r in decode(rows)]
    default = [r["triton_default64_ms"] / r["ours_ms"] for r in decode(rows)]
    bound = [r["byte_floor_share"] for r in rows if r["floor_ms"] >= 0.008]
    figures = {
        "cases": len(rows),
        "decode_vs_triton_best": geometric_mean(best),
        "decode_vs_triton_default64": geometric_mean(default),
        "worst_cell": min(best),
        "prefill_vs_triton_best": geometric_mean(r["speedup"] for r in rows if r["prefill"]),
        "byte_floor_share": geometric_mean(bound) if bound else None,
        **random_steps(options.steps, setting.device),
    }
    if options.dry_gpu:
        return figures, rows
    engine_figures, engine_rows = in_an_engine(options.quick)
    return figures | engine_figures, rows + engine_rows


def decode(rows: Rows) -> Rows:
    return [row for row in rows if not row["prefill"]]


def speedups(rows: Rows) -> Figures:
    """Geometric mean and minimum, apart for decode and prefill."""
    figures = {}
    for phase in ("decode", "prefill"):
        found = [row["speedup"] for row in rows if row["prefill"] == (phase == "prefill")]
        figures |= {f"{phase}_speedup": geometric_mean(found), f"{phase}_speedup_min": min(found)}
    return figures


def geometric_mean(values: Any) -> float:
    return round(math.exp(statistics.fmean(map(math.log, values))), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few cases, few steps")
    parser.add_argument("--steps", type=int, metavar="N", help="random steps; 100000, quick 1000")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go")
    parser.add_argument("--dry-gpu", action="store_true", help="check the GPU's way on a CPU")
    options = parser.parse_args()
    assert native.available(), "python -m multilora.build"
    sys.path.remove(str(HERE))  # where transformers would find this as `kernels`
    options.quick |= options.dry_gpu
    options.steps = options.steps or (1000 if options.quick else 100_000)
    torch.manual_seed(0)
    gpu = native.available("cuda") and torch.cuda.is_available()
    figures, rows = on_gpu(options) if gpu or options.dry_gpu else on_cpu(options)
    print(json.dumps(figures, indent=2))
    if options.dry_gpu or (options.quick and not options.json):
        return
    name = report.with_gpu("kernels") if gpu else "kernels_cpu"
    print(report.write(name, figures, rows, options.json))


if __name__ == "__main__":
    main()
