"""Schedules: what several cuts, or shrinking before one, gain over one cut, for the same tokens.

Usage: python benchmarks/schedules.py [--quick] [--tokens N] [--json FILE]

Cuts the bundled model, recovers with `distill` on the bundled calibration text, one sequence a
step, and measures nats per token above the dense model on the held-out evaluation text.  Three
comparisons, the allocator `uniform` in all: every schedule on 50 % of the body (criterion taylor);
soft_shrink against cuts by the same criterion on 75 % (magnitude), as its paper has it; and
until_stop against rounds of a fixed 20 %.  A row is written when it is measured, and a run goes on
from the rows of the same command that the file has.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import report
from recovery import Bench, quiet, say

from pruning.pipeline import STAGES
from pruning.recipe import Method

ROUNDS = 5
FIXED = 1 - 0.8**ROUNDS  # what leaves in that many rounds of 20 % of what is left


@dataclass(frozen=True)
class Case:
    """A schedule, on a part of the body and by a criterion."""

    comparison: str
    schedule: str
    target: float
    params: dict[str, float] = field(default_factory=dict)
    criterion: str = "taylor"


CASES = (
    Case("schedules", "one_shot", 0.5),
    Case("schedules", "soft_shrink", 0.5),
    Case("schedules", "cubic", 0.5, {"cuts": 4}),
    Case("schedules", "interleaved", 0.5, {"step": 0.125}),
    Case("schedules", "until_stop", 0.5, {"rounds": 4}),
    Case("shrinking", "soft_shrink", 0.75, {}, "magnitude"),
    Case("shrinking", "interleaved", 0.75, {"step": 0.1875}, "magnitude"),
    Case("stopping", "until_stop", FIXED, {"rounds": ROUNDS}),
    Case("stopping", "interleaved", FIXED, {"step": FIXED / ROUNDS}),
)


def measured(bench: Bench, case: Case, tokens: int) -> dict[str, Any]:
    """A row: the recovered base under a schedule."""
    params = {"tokens": tokens, "batch": 1, "held_out": bench.held_out, "checks": 2}
    asked = bench.spec(case.target, {"name": "distill", "params": params})
    changes = {
        "schedule": Method(name=case.schedule, params=case.params),
        "criterion": Method(name=case.criterion),
    }
    asked = asked.model_copy(update={"recipe": asked.recipe.model_copy(update=changes)})
    work = bench.work / f"{case.comparison}-{case.schedule}"
    work.mkdir()
    started = time.monotonic()
    for stage in ("schedule", "calibrate", "plan", "slice", "recover"):
        STAGES[stage](asked, work, quiet)
    seconds = time.monotonic() - started
    above = bench.nats(work / "recover" / "model") - bench.dense
    rounds = work / "schedule" / "rounds.json"
    return {
        **asdict(case),
        "tokens": tokens,
        "nats_above_dense": round(above, 4),
        "seconds": round(seconds, 1),
        **({"chosen": json.loads(rounds.read_text())} if rounds.is_file() else {}),
    }


def figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Ratios of nats above dense, of what has been measured so far."""
    nats = {(row["comparison"], row["schedule"]): row["nats_above_dense"] for row in rows}
    against = {"schedules": "one_shot", "shrinking": "interleaved", "stopping": "interleaved"}
    found = {}
    for (comparison, schedule), own in nats.items():
        other = nats.get((comparison, against[comparison]))
        if schedule != against[comparison] and other is not None:
            found[f"{comparison}_{schedule}_ratio"] = round(own / other, 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few tokens, short texts, 50 % alone")
    parser.add_argument("--tokens", type=int, default=32_768, help="budget of each schedule")
    parser.add_argument("--minutes", type=float, default=600, help="begin no row after these")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go")
    options = parser.parse_args()
    tokens = 1024 if options.quick else options.tokens
    path = options.json or report.RESULTS / "schedules.json"
    kept = json.loads(path.read_text())["rows"] if options.json and path.is_file() else []
    rows = [row for row in kept if row["tokens"] == tokens]
    done = {(row["comparison"], row["schedule"]) for row in rows}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(Path(work), None, options.quick)
        for case in CASES:
            in_time = time.monotonic() - started < 60 * options.minutes
            if (case.comparison, case.schedule) in done or not in_time:
                continue
            if options.quick and case.comparison != "schedules":
                continue
            rows.append(measured(bench, case, tokens))
            say(**rows[-1])
            if options.json or not options.quick:
                report.write("schedules", figures(rows), rows, path)
    print(json.dumps(figures(rows), indent=2))


if __name__ == "__main__":
    main()
