"""Adapters beside a linear or merged into it: which is faster, and what the cost model says.

Usage: python benchmarks/order.py [--quick] [--json FILE]

One linear, its inputs and outputs of one width, on a grid of tokens, ranks and widths: the time of
y += (x Aᵀ) Bᵀ, and of W + B A, after which y = x Wᵀ costs nothing more.  The fastest of many runs
each, of the processor's time on one thread, so that what else runs on the machine hardly counts.
`agreement` is the part of the grid where the model (pruning/adapters/order.py)
chooses the faster one; `regret` is how much longer its choices take, all in all, than the best.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report
import torch

from pruning.adapters.order import Shape, cheaper

TOKENS, RANKS, WIDTHS = (8, 32, 128, 512, 2048), (4, 16, 64), (256, 512, 1024, 2048)
SECONDS = 0.1  # for each way


def measure(tokens: int, rank: int, width: int, seconds: float) -> dict[str, Any]:
    """A point of the grid."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    x_TI, w_OI, a_RI = drawn(tokens, width), drawn(width, width), drawn(rank, width)
    b_OR, merged_OI, y_TO = drawn(width, rank), torch.empty(width, width), drawn(tokens, width)

    def chained() -> None:
        y_TO.addmm_(x_TI @ a_RI.T, b_OR.T)

    def merged() -> None:
        torch.addmm(w_OI, b_OR, a_RI, out=merged_OI)

    times = {"chained": fastest(chained, seconds), "merged": fastest(merged, seconds)}
    chosen = cheaper([Shape(width, width, rank)], tokens)
    point = {"tokens": tokens, "rank": rank, "width": width, "chosen": chosen}
    return point | {name: round(1e6 * value, 1) for name, value in times.items()}


def fastest(run: Callable[[], None], seconds: float) -> float:
    """The shortest of the times that fit, in seconds."""
    run()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 5:
        started = time.thread_time()
        run()
        times.append(time.thread_time() - started)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a corner of the grid")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    grid = itertools.product(TOKENS, RANKS, WIDTHS[:1] if options.quick else WIDTHS)
    seconds = 0.01 if options.quick else SECONDS
    rows = [measure(*point, seconds) for point in grid]
    best = [min(row["chained"], row["merged"]) for row in rows]
    taken = [row[row["chosen"]] for row in rows]
    figures = {
        "agreement": round(sum(map(float.__eq__, best, taken)) / len(rows), 4),
        "regret": round(sum(taken) / sum(best) - 1, 4),
        "points": len(rows),
    }
    print(json.dumps(figures, indent=2))
    print(report.write("order", figures, rows, options.json))


if __name__ == "__main__":
    main()
