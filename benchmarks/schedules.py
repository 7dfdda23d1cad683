"""Schedules: what several cuts with distillation between them gain over one, for the same tokens.

Usage: python benchmarks/schedules.py [--quick] [--tokens N] [--json FILE]

Cuts the bundled model by 50 % of its body (criterion taylor, allocator uniform) under every
schedule, four cuts each but for one_shot, recovers with `distill` on the bundled calibration text,
and measures nats per token above the dense model on the held-out evaluation text.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import report
from recovery import BATCH_TOKENS, Bench, quiet, say

from pruning.pipeline import STAGES
from pruning.recipe import Method

TARGET = 0.5
SCHEDULES = (
    Method(name="one_shot"),
    Method(name="interleaved", params={"step": TARGET / 4}),
    Method(name="cubic", params={"cuts": 4}),
)


def measured(bench: Bench, schedule: Method, tokens: int) -> dict[str, Any]:
    """A row: the recovered base under a schedule."""
    params = {"tokens": tokens, "batch": BATCH_TOKENS // bench.length, "held_out": bench.held_out}
    asked = bench.spec(TARGET, {"name": "distill", "params": {**params, "checks": 2}})
    asked = asked.model_copy(
        update={"recipe": asked.recipe.model_copy(update={"schedule": schedule})}
    )
    work = bench.work / schedule.name
    work.mkdir()
    started = time.monotonic()
    for stage in ("schedule", "calibrate", "plan", "slice", "recover"):
        STAGES[stage](asked, work, quiet)
    seconds = time.monotonic() - started
    above = bench.nats(work / "recover" / "model") - bench.dense
    return {
        "schedule": schedule.name,
        "params": schedule.params,
        "tokens": tokens,
        "nats_above_dense": round(above, 4),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few tokens and short texts")
    parser.add_argument("--tokens", type=int, default=32_768, help="budget of each schedule")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go")
    options = parser.parse_args()
    tokens = 4 * BATCH_TOKENS if options.quick else options.tokens
    rows = []
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(Path(work), None, options.quick)
        for schedule in SCHEDULES:
            rows.append(measured(bench, schedule, tokens))
            say(**rows[-1])
    once, *others = (row["nats_above_dense"] for row in rows)
    names = (row["schedule"] for row in rows[1:])
    figures = {
        f"{name}_ratio_to_one_shot": round(n / once, 4)
        for name, n in zip(names, others, strict=True)
    }
    print(json.dumps(figures, indent=2))
    if options.json or not options.quick:
        print(report.write("schedules", figures, rows, options.json))


if __name__ == "__main__":
    main()
