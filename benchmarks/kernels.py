"""Multi-adapter kernels on a CPU against vLLM's own CPU operators, side by side in one run.

usage: python benchmarks/kernels.py [--quick] [--threads N] [--json FILE]

Each row of the result is one linear (packed q, k, v; packed gate and up; down) with one batch.
Which adapter a row of the batch gets is named as in Punica (Chen et al., MLSys 2024,
https://arxiv.org/abs/2310.18547): identical, distinct, uniform, zipf, skewed.  The adapters of a
case are copied until no cache holds them all, and each call takes the next copy and turns the slots
by one, so that it finds its weights in memory, as the layers of a model would.  Both sides get the
same rows; theirs is `PunicaWrapperCPU.add_lora_linear`, whose buffers have the largest rank of the
case, as in an engine.  Both run by turns; times are medians of calls.

Figures: `decode_speedup` is the geometric mean of theirs / ours over the decode batches (1 to 256
tokens), `prefill_speedup` that over the prefill batches.  With one thread these are CPU seconds,
which other work on the machine does not lengthen; with more they are seconds of the clock, which
mean something on a quiet machine only.  `wrong_rows` counts the rows of `random_steps` random steps
that are off a float64 reference.
"""

import argparse
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import report
import torch
from torch import Tensor

from multilora import Batch, Compositions, Linear, Pool, apply_, build, native, reference

LINEARS = {
    "qkv-2048": Linear(2048, (2048, 512, 512)),
    "gate_up-2048": Linear(2048, (5632, 5632)),
    "down-2048": Linear(5632, (2048,)),
    "qkv-4096": Linear(4096, (4096, 1024, 1024)),
    "gate_up-4096": Linear(4096, (14336, 14336)),
    "down-4096": Linear(14336, (4096,)),
}
RANKS = {"8": (8,), "16": (16,), "64": (64,), "mixed": (8, 16, 32, 64)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CACHE_BYTES = 96 << 20  # more than the last level holds
DECODE = [("identical", 1), ("distinct", 8), ("uniform", 32), ("zipf", 64), ("skewed", 256)]
PREFILL = [("identical", 128), ("uniform", 512)]
TURN, ENOUGH = 0.02, 0.2  # seconds
ADAPTERS = 16  # resident; a batch of fewer rows cannot use them all


@dataclass(frozen=True)
class Case:
    """One linear with one batch."""

    linear: str
    dtype: str
    ranks: str
    popularity: str
    tokens: int
    prefill: bool


def cases(quick: bool) -> Iterator[Case]:
    """A cover of linears, dtypes, ranks and popularities, not their product."""
    for dtype in DTYPES:
        for popularity, tokens in DECODE:
            yield Case("qkv-2048", dtype, "16", popularity, tokens, False)
        for popularity, tokens in PREFILL:
            yield Case("qkv-2048", dtype, "16", popularity, tokens, True)
        if quick:
            continue
        others = [("qkv-2048", ranks) for ranks in RANKS if ranks != "16"]
        others += [(linear, "16") for linear in LINEARS if linear != "qkv-2048"]
        for linear, ranks in others:
            for popularity, tokens in DECODE[1:3]:
                yield Case(linear, dtype, ranks, popularity, tokens, False)
        yield Case("down-4096", dtype, "16", *PREFILL[0], True)


def slots_of(popularity: str, tokens: int, prefill: bool) -> list[int]:
    """The slot of each row; in prefill a sequence of 64 rows shares one."""
    count = -(-tokens // 64) if prefill else tokens
    generator = torch.Generator().manual_seed(count)
    weights = {
        "uniform": torch.ones(ADAPTERS),
        "zipf": torch.arange(1, ADAPTERS + 1, dtype=torch.float) ** -1.5,
        "skewed": torch.tensor([3.0 * (ADAPTERS - 1)] + [1.0] * (ADAPTERS - 1)),
    }
    if popularity == "identical":
        slots = [0] * count
    elif popularity == "distinct":
        slots = list(range(count))
    else:
        slots = weights[popularity].multinomial(count, True, generator=generator).tolist()
    return [slot for slot in slots for _ in range(64 if prefill else 1)][:tokens]


class Sides:
    """The same adapters twice: stacked for vLLM and packed for the kernels, in several copies."""

    def __init__(self, linear: Linear, dtype: torch.dtype, ranks: tuple[int, ...]) -> None:
        self.linear = linear
        self.dtype = dtype
        largest, outputs = max(ranks), sum(linear.widths)
        one = largest * (linear.inputs * len(linear.widths) + outputs) * dtype.itemsize
        self.copies = max(2, -(-CACHE_BYTES // (one * ADAPTERS)))
        self.pool = Pool({str(i): linear for i in range(self.copies)}, ADAPTERS, dtype)
        self.stacked = [self._stack(largest) for _ in range(self.copies)]
        for slot in range(ADAPTERS):
            self.pool.load(slot, self._adapter(slot, ranks[slot % len(ranks)]))

    def _stack(self, rank: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        a = [torch.zeros(ADAPTERS, 1, rank, self.linear.inputs) for _ in self.linear.widths]
        b = [torch.zeros(ADAPTERS, 1, width, rank) for width in self.linear.widths]
        return tuple(t.to(self.dtype) for t in a), tuple(t.to(self.dtype) for t in b)

    def _adapter(self, slot: int, rank: int) -> dict[str, Any]:
        for a, b in self.stacked:
            for s in range(len(a)):
                a[s][slot, 0, :rank].normal_().div_(self.linear.inputs**0.5)
                b[s][slot, 0, :, :rank].normal_().div_(rank**0.5)
        return {
            str(i): [(x[slot, 0, :rank], y[slot, 0, :, :rank]) for x, y in zip(a, b, strict=True)]
            for i, (a, b) in enumerate(self.stacked)
        }


def measure(case: Case, sides: Sides, turns: int) -> dict[str, Any]:
    """Median milliseconds of both, and how far the kernels are off float64."""
    linear, slots = sides.linear, slots_of(case.popularity, case.tokens, case.prefill)
    x = torch.randn(case.tokens, linear.inputs).to(sides.dtype)
    y = torch.randn(case.tokens, sum(linear.widths)).to(sides.dtype)
    turned = [[(slot + turn) % ADAPTERS for slot in slots] for turn in range(ADAPTERS)]
    calls = list(itertools.product(range(sides.copies), range(ADAPTERS)))
    batches = [batch_of(slots) for slots in turned]
    wrappers = [wrapper_of(slots, case.prefill) for slots in turned]
    our_calls, their_calls = itertools.cycle(calls), itertools.cycle(calls)

    def ours() -> None:
        copy, turn = next(our_calls)
        apply_(y, x, sides.pool, str(copy), batches[turn])

    def theirs() -> None:
        copy, turn = next(their_calls)
        wrappers[turn].add_lora_linear(y, x, *sides.stacked[copy], 1.0, linear.widths)

    error = relative_error(sides, x, batches[0])
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times = timed((ours, theirs), turns, clock)
    return {
        **asdict(case),
        "adapters": len(set(slots)),
        "ours_ms": round(times[0] * 1e3, 4),
        "theirs_ms": round(times[1] * 1e3, 4),
        "speedup": round(times[1] / times[0], 2),
        "relative_error": float(f"{error:.2g}"),
    }


def batch_of(slots: list[int]) -> Batch:
    batch = Batch(Compositions.of_slots(ADAPTERS), len(slots))
    batch.update(slots)
    return batch


def wrapper_of(slots: list[int], is_prefill: bool) -> Any:
    from vllm.lora.layers import LoRAMapping
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    wrapper = PunicaWrapperCPU(len(slots), max_batches=len(slots), device="cpu")
    ids = tuple(slot + 1 for slot in slots)
    mapping = LoRAMapping(ids, ids, is_prefill=is_prefill)
    wrapper.update_metadata(mapping, list(range(1, ADAPTERS + 1)), ADAPTERS + 1, 100)
    return wrapper


def relative_error(sides: Sides, x: Tensor, batch: Batch) -> float:
    """The largest error of a row of one call, relative to the row's largest value."""
    y = torch.zeros(len(x), sum(sides.linear.widths), dtype=sides.dtype)
    exact = y.double()
    apply_(y, x, sides.pool, "0", batch)
    a, b = sides.stacked[0]
    reference.apply_(
        exact,
        x.double(),
        batch.rows,
        batch.compositions.parts(),
        lambda slot, s: (a[s][slot, 0].double(), b[s][slot, 0].double()),
        sides.linear.widths,
    )
    return float(((y.double() - exact).abs().amax(1) / exact.abs().amax(1)).max())


def timed(
    functions: tuple[Callable[[], None], ...], turns: int, clock: Callable[[], float]
) -> list[float]:
    """Median seconds of each; they take turns of at least TURN seconds, not longer than ENOUGH."""
    seconds: list[list[float]] = [[] for _ in functions]
    for turn in range(turns):
        for function, found in zip(functions, seconds, strict=True):
            if turn >= 3 and sum(found) > ENOUGH:
                continue
            until = clock() + TURN
            while (started := clock()) < until:
                function()
                found.append(clock() - started)
    return [statistics.median(found) for found in seconds]


def random_steps(count: int) -> int:
    """Rows off a float64 reference in random steps of small linears, adapters changing between."""
    linear, slots, max_rows = Linear(48, (40, 16, 16)), 6, 40
    compositions = Compositions(10, max_parts=4)
    batch = Batch(compositions, max_rows)
    pools = [Pool({"": linear}, slots, dtype) for dtype in (torch.float32, torch.float64)]
    wrong = 0
    for _ in range(count):
        slot, rank = int(torch.randint(slots, ())), int(torch.randint(1, 33, ()))
        adapter = {"": [(torch.randn(rank, 48), torch.randn(w, rank)) for w in linear.widths]}
        for pool in pools:
            pool.load(slot, adapter)
        parts = torch.randperm(slots)[: int(torch.randint(5, ()))].tolist()
        compositions.set(int(torch.randint(10, ())), [(part, 0.5) for part in parts])
        batch.update(torch.randint(-1, 10, (int(torch.randint(1, max_rows + 1, ())),)))
        x = torch.randn(len(batch.rows), 48)
        y, exact = torch.zeros(len(x), 72), torch.zeros(len(x), 72, dtype=torch.float64)
        apply_(y, x, pools[0], "", batch)
        apply_(exact, x.double(), pools[1], "", batch)
        wrong += int(((y - exact).abs().amax(1) > 1e-5 * exact.abs().amax(1)).sum())
    return wrong


def built() -> dict[str, float]:
    """Seconds of a build for the CPU alone, and the size of the library."""
    with tempfile.TemporaryDirectory() as directory:
        started, before = time.monotonic(), os.times()
        library = Path(directory) / "library.so"
        build.build(build.SOURCES[0], library)
        seconds, after = time.monotonic() - started, os.times()
        return {
            "build_seconds": round(seconds, 1),
            "build_cpu_seconds": round(
                after.children_user
                + after.children_system
                - before.children_user
                - before.children_system,
                1,
            ),
            "so_mib": round(library.stat().st_size / 2**20, 3),
        }


def speedups(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Geometric mean and minimum, apart for decode and prefill."""
    figures = {}
    for phase in ("decode", "prefill"):
        found = [row["speedup"] for row in rows if row["prefill"] == (phase == "prefill")]
        figures[f"{phase}_speedup"] = geometric_mean(found)
        figures[f"{phase}_speedup_min"] = min(found)
    return figures


def geometric_mean(values: list[float]) -> float:
    return round(math.exp(statistics.fmean(map(math.log, values))), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few cases, few steps")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of both sides; 1")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go")
    options = parser.parse_args()
    assert native.available(), "python -m multilora.build"
    chosen = os.environ.get("MULTILORA_ISA") or next(filter(native.has, native.INSTRUCTION_SETS))
    sys.path.remove(str(Path(__file__).parent))  # where transformers would find this as `kernels`
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    rows = []
    key = lambda case: (case.linear, case.dtype, case.ranks)  # noqa: E731
    with torch.inference_mode():
        for group, members in itertools.groupby(cases(options.quick), key):
            sides = Sides(LINEARS[group[0]], DTYPES[group[1]], RANKS[group[2]])
            for case in members:
                rows.append(measure(case, sides, 3 if options.quick else 5))
                print(json.dumps(rows[-1]), flush=True)
        steps = 1000 if options.quick else 5000
        wrong = random_steps(steps)
    figures = {
        "instruction_set": chosen,
        "cases": len(rows),
        "threads": options.threads,
        **speedups(rows),
        "random_steps": steps,
        "wrong_rows": wrong,
        **built(),
    }
    print(json.dumps(figures, indent=2))
    if options.json or not options.quick:
        print(report.write("kernels_cpu", figures, rows, options.json))


if __name__ == "__main__":
    main()
