"""A latency that is asked for against the one that comes out: decoding steps of transformers.

Usage: python benchmarks/latency.py [--quick] [--cpu-time] [--json FILE]

A random base, 6 layers of half of TinyLlama-1.1B's widths, is timed block by block for each load.
By these times jobs (criterion `magnitude`) are asked for fractions of the dense base's step, with
the same widths in every layer (`uniform`) and each layer for itself (`global`).  Dense and slim
base are then timed by turns, so that whatever else the machine does meets both.

In a row, `asked` and `predicted` (by the times, for the plan) are fractions of the dense step that
the times predict, `measured` is the slim step over the dense one, each the shortest of all turns.
latency_asked_vs_measured_worst is the largest of |measured / asked - 1| over all rows, _mean their
mean, and latency_predicted_vs_measured_worst the same of what was predicted.  --quick has fewer
layers, one load and one fraction.  --cpu-time counts the time of the process on its core in place
of that on the wall: for one thread on a machine that is not at rest.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import report
from memory import DEMO, write_base

from pruning import evaluation, latency
from pruning.geometry import Geometry
from pruning.pipeline import STAGES
from pruning.plan import Plan, Widths
from pruning.recipe import PruneSpec, Recipe, Size
from pruning.weights.checkpoint import Checkpoint

SHAPE = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "num_hidden_layers": 6,
    "vocab_size": 8192,
    "tie_word_embeddings": False,
}
QUICK_SHAPE = {**SHAPE, "num_hidden_layers": 4, "vocab_size": 4096}
LOADS = {"1 sequence": {"batch": 1}, "4 behind 512 tokens": {"batch": 4, "context": 512}}
ALLOCATORS = ("uniform", "global")
FRACTIONS, QUICK_FRACTIONS = (0.8, 0.6), (0.8,)
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cpu-time", action="store_true", help="for OMP_NUM_THREADS=1")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.cpu_time:
        latency.clock = time.process_time
    loads = list(LOADS)[:1] if options.quick else list(LOADS)
    fractions = QUICK_FRACTIONS if options.quick else FRACTIONS
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as work:
        base = write_base(Path(work) / "base", QUICK_SHAPE if options.quick else SHAPE)
        for load in loads:
            rows += of_load(load, base, fractions)
            report.write("latency", figures(rows), rows, options.json)
    print(json.dumps(figures(rows), indent=2))


def of_load(load: str, base: Path, fractions: Sequence[float]) -> list[Row]:
    """A row per allocator and fraction, all planned by one table of times."""
    size = Size(latency_ms=1, **LOADS[load])
    recipe = spec(base, size, "global").recipe  # may have any width
    size = size.model_copy(update={"table": latency.table(Checkpoint(base), recipe, silent)})
    assert size.table is not None
    dense_ms = size.table.predicted(widths(Plan.dense(Geometry.of(base))))
    rows = []
    for allocator, asked in product(ALLOCATORS, fractions):
        goal = size.model_copy(update={"latency_ms": asked * dense_ms})
        found = reached(spec(base, goal, allocator), dense_ms)
        rows.append({"load": load, "allocator": allocator, "asked": asked, **found})
        print(rows[-1], flush=True)
    return rows


def reached(asked: PruneSpec, dense_ms: float) -> Row:
    """Run a job until there is a slim base, and time it beside the dense one."""
    size = asked.recipe.size
    assert size is not None
    assert size.table is not None
    with tempfile.TemporaryDirectory(dir=asked.base.parent) as folder:
        work = Path(folder)
        for stage in ("calibrate", "plan", "slice"):
            STAGES[stage](asked, work, silent)
        plan = Plan.model_validate_json((work / "plan" / "plan.json").read_bytes())
        bases = {"dense": asked.base, "slim": work / "slice" / "model"}
        models = {name: evaluation.load(base) for name, base in bases.items()}
    ms = latency.shortest(models, size, silent)
    return {
        "predicted": round(size.table.predicted(widths(plan)) / dense_ms, 3),
        "measured": round(ms["slim"] / ms["dense"], 3),
        "asked_ms": round(size.amount, 2),
        "dense_predicted_ms": round(dense_ms, 2),
        "dense_ms": round(ms["dense"], 2),
        "slim_ms": round(ms["slim"], 2),
    }


def widths(plan: Plan) -> Widths:
    """How many units of each layer a plan keeps."""
    return Widths(
        tuple(len(layer.kv_groups) for layer in plan.layers),
        tuple(len(layer.ffn_channels) for layer in plan.layers),
    )


def spec(base: Path, size: Size, allocator: str) -> PruneSpec:
    """A job that cuts the base to a size."""
    text = {"sequences": 1, "length": 64}
    recipe = Recipe.model_validate(
        {
            "name": "fast",
            "base": "base",
            "size": size.model_dump(),
            "criterion": {"name": "magnitude"},
            "allocator": {"name": allocator},
            "ffn_multiple": 64,
            "calibration": {"file": "text/calibration.txt", **text},
            "evaluation": {"file": "text/evaluation.txt", **text},
        }
    )
    calibration, evaluation = (DEMO / t.file for t in (recipe.calibration, recipe.evaluation))
    return PruneSpec(
        recipe=recipe, base=base, adapters={}, calibration=calibration, evaluation=evaluation
    )


def silent(fraction: float, message: str) -> None:
    return None


def figures(rows: Sequence[Row]) -> dict[str, float]:
    """How far asked and predicted are from what was measured."""
    found = {}
    for name in ("asked", "predicted"):
        misses = [abs(row["measured"] / row[name] - 1) for row in rows]
        found[f"latency_{name}_vs_measured_worst"] = round(max(misses), 3)
        found[f"latency_{name}_vs_measured_mean"] = round(statistics.mean(misses), 3)
    return found


if __name__ == "__main__":
    main()
