"""A sweep against its cells as jobs of their own: the same figures, and the seconds of both.

Usage: python benchmarks/sweep.py [--quick] [--work DIRECTORY] [--json FILE]

The bundled base with its five adapters, two criteria by two allocators by three targets, each
stage in a process of its own as the worker runs it.  sweep_* and jobs_* are seconds on the wall
and of all processors; cpu_ratio is the sweep's CPU seconds over the jobs'.  Both ways must find
the same loss, divergence and size of every cell, to the last bit.  --quick: two cells, one adapter
and little text.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import report
from pydantic import BaseModel

from pruning.jobs.kinds import PRUNING, SWEEPS, Kind
from pruning.jobs.runner import Runner
from pruning.recipe import PruneSpec
from pruning.reports.report import Report
from pruning.sweeps.recipe import SweepRecipe, SweepSpec, label
from pruning.sweeps.report import SweepReport, cell_of
from pruning.weights.header import tensor_bytes

DEMO = Path(__file__).resolve().parent.parent / "deploy" / "demo"
GRID = {
    "criterion": [{"name": "taylor"}, {"name": "fluctuation"}],
    "allocator": [{"name": "uniform"}, {"name": "global"}],
    "target": [0.2, 0.35, 0.5],
}
TIMES = {"seconds", "latency_ms", "dominated_by"}  # of a cell, that are no measurement of it


@dataclass(frozen=True)
class Cost:
    """Seconds on the wall, and of all processors."""

    wall: float
    cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--work", type=Path, metavar="DIRECTORY")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    spec = sweep(options.quick)
    with ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        together = run(SWEEPS, spec, spec.recipe, work / "sweep")
        text = (work / "sweep" / "publish" / "report.json").read_bytes()
        found = SweepReport.model_validate_json(text)
        print(f"sweep: {together}", flush=True)
        apart = []
        for number, cell in enumerate(spec.cells):
            apart.append(run(PRUNING, cell, cell.recipe, work / str(number)))
            print(f"cell {number}: {apart[-1]}", flush=True)
            check(found, number, work / str(number))
    path = report.write("sweep", figures(together, apart, found), rows(found, apart), options.json)
    print(f"wrote {path}\n{json.dumps(figures(together, apart, found), indent=2)}")


def sweep(quick: bool) -> SweepSpec:
    """What is run."""
    grid = {**GRID, "allocator": GRID["allocator"][:1], "target": [0.35]} if quick else GRID
    windows = 4 if quick else 32
    recipe = SweepRecipe.model_validate(
        {
            "name": "sweep",
            "base": "demo",
            "calibration": {"file": "calibration", "sequences": 8 if quick else 128},
            "evaluation": {"file": "evaluation", "sequences": windows},
            "grid": grid,
        }
    )
    adapters = sorted((DEMO / "adapters").iterdir())[: 1 if quick else None]
    cells = tuple(
        PruneSpec(
            recipe=cell,
            base=DEMO / "base",
            adapters={path.name: path for path in adapters},
            calibration=DEMO / "text" / "calibration.txt",
            evaluation=DEMO / "text" / "evaluation.txt",
        )
        for cell in recipe.cells()
    )
    return SweepSpec(recipe=recipe, cells=cells)


def run(kind: Kind, spec: BaseModel, recipe: Any, work: Path) -> Cost:
    """All stages of a job, as the worker runs them."""
    work.mkdir(parents=True)
    (work / "spec.json").write_text(spec.model_dump_json())
    runner, started, before = Runner().of(kind), time.monotonic(), cpu_seconds()
    for stage in kind.stages(recipe):
        runner(stage, work, lambda fraction, message: None, lambda: False)
    return Cost(round(time.monotonic() - started, 1), round(cpu_seconds() - before, 1))


def cpu_seconds() -> float:
    """Of all processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def check(found: SweepReport, number: int, work: Path) -> None:
    """Raise unless the cell's own job measured the same."""
    alone = Report.model_validate_json((work / "publish" / "report.json").read_bytes())
    ours = next(cell for cell in found.cells if cell.number == number)
    weights = tensor_bytes(work / "publish" / "model" / "model.safetensors")
    theirs = cell_of(number, found.recipe, alone, weights, None)
    if ours.model_dump(exclude=TIMES) != theirs.model_dump(exclude=TIMES):
        raise SystemExit(f"cell {number} differs: {ours} {theirs}")


def figures(together: Cost, apart: Sequence[Cost], found: SweepReport) -> dict[str, Any]:
    cpu = sum(cost.cpu for cost in apart)
    return {
        "cells": len(found.cells),
        "on_front": len(found.front),
        "sweep_wall_seconds": together.wall,
        "sweep_cpu_seconds": together.cpu,
        "jobs_wall_seconds": round(sum(cost.wall for cost in apart), 1),
        "jobs_cpu_seconds": round(cpu, 1),
        "cpu_ratio": round(together.cpu / cpu, 3),
    }


def rows(found: SweepReport, apart: Sequence[Cost]) -> list[dict[str, Any]]:
    return [
        {
            "cell": cell.number,
            "what": label(cell.changes),
            "bytes": cell.bytes,
            "delta_nats": round(cell.delta_nats, 4),
            "divergence": round(cell.divergence, 4),
            "dominated_by": cell.dominated_by,
            "seconds_in_sweep": cell.seconds,
            "job_wall_seconds": cost.wall,
            "job_cpu_seconds": cost.cpu,
        }
        for cell, cost in zip(found.cells, apart, strict=True)
    ]


if __name__ == "__main__":
    main()
