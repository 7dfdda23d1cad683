"""Schedules and calibration subsets, each against what its paper sets it against, over seeds.

Usage: python benchmarks/schedules.py [--quick] [--seeds N] [--minutes M] [--json FILE]

Cuts the bundled model, repairs it on the bundled calibration text, a sequence of 64 tokens a step,
and measures nats per token above the dense model on the held-out evaluation text.  Within a
comparison all get the same tokens and, but for `until_stop`, which stops where it likes, the same
target.  A row is written as soon as it is measured, and a run goes on from the rows of FILE; the
seeds take turns, so that an interrupted run has all comparisons over fewer seeds.  Figures are
paired over seeds: what a case gains over its comparison's first one, its standard error, and with
three seeds whether the paper's claim holds, a mean gain of more than that error.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import report
from recovery import DEMO, quiet, say

from pruning import evaluation
from pruning.geometry import Geometry
from pruning.jobs.outputs import slim_base
from pruning.pipeline import STAGES
from pruning.recipe import PruneSpec, Recipe
from pruning.text import load_tokenizer

LENGTH = 64
TOKENS = 8192  # of each recovery
FFN = {"target": 0.571, "units": ["ffn_channel"]}  # 80 % of the FFN
ROUNDS = 5
FIXED = 1 - 0.8**ROUNDS  # what leaves in that many rounds of 20 % of what is left
RATES = {"distill": 1e-3, "lora": 1e-2}  # the best ones of benchmarks/recovery.py

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """Entries of a recipe under a name; the first case of a comparison is what others are up to."""

    comparison: str
    name: str
    entries: dict[str, Any]
    recovery: str | None = "distill"


def schedule(name: str, **params: float) -> dict[str, Any]:
    return {"schedule": {"name": name, "params": params}}


MAGNITUDE = FFN | {"criterion": {"name": "magnitude"}}
CASES = (
    # Adapt-Pruner: many small cuts with training between them, against one.
    Case("schedules", "one_shot", FFN),
    Case("schedules", "interleaved", FFN | schedule("interleaved", step=0.143)),
    # ISS-P: weights that shrink and may come back, against cuts by the same criterion.
    Case("shrinking", "interleaved", MAGNITUDE | schedule("interleaved", step=0.143)),
    Case("shrinking", "soft_shrink", MAGNITUDE | schedule("soft_shrink")),
    # SAP: rounds that the PQ index ends, against as many of a fixed depth.
    Case(
        "stopping", "interleaved", {"target": FIXED} | schedule("interleaved", step=FIXED / ROUNDS)
    ),
    Case("stopping", "until_stop", {"target": FIXED} | schedule("until_stop", rounds=ROUNDS)),
    # LoRAPrune: LoRA-guided cuts on a cubic schedule, against LLM-Pruner's one and the same LoRA.
    Case("guided", "one_shot_taylor", {"target": 0.5}, "lora"),
    Case(
        "guided",
        "cubic_lora_guided",
        {"target": 0.5, "criterion": {"name": "lora_guided"}} | schedule("cubic", cuts=4),
        "lora",
    ),
    # The data-pruning metric: which 16 sequences of 256 calibrate, against 16 drawn at random.
    *(
        Case(
            "subsets",
            name,
            FFN | {"calibration": {"select": name, "pool": 256, "sequences": 16}},
            None,
        )
        for name in ("random", "prototypes", "easy", "hard")
    ),
    # The other schedules, for the table.
    Case("schedules", "cubic", FFN | schedule("cubic", cuts=4)),
    Case("schedules", "soft_shrink", FFN | schedule("soft_shrink")),
    Case("schedules", "until_stop", FFN | schedule("until_stop", rounds=4)),
)
CLAIMS = {  # of papers: what is said to beat the first case of its comparison
    "adapt_pruner": ("schedules", "interleaved"),
    "iss_p": ("shrinking", "soft_shrink"),
    "sap": ("stopping", "until_stop"),
    "loraprune": ("guided", "cubic_lora_guided"),
    "data_pruning": ("subsets", "easy"),  # where data are scarce, the easy ones
}


class Bench:
    """The bundled model and the text that judges."""

    def __init__(self, quick: bool):
        self.quick = quick
        asked = self.spec(CASES[0], 0)
        tokenizer = load_tokenizer(DEMO / "base")
        self.text = evaluation.windows(tokenizer, asked.evaluation, asked.recipe.evaluation)
        self.dense = self.nats(DEMO / "base")

    def spec(self, case: Case, seed: int) -> PruneSpec:
        text = {"file": "bundled", "sequences": 8 if self.quick else 64, "length": LENGTH}
        recipe = {"name": "slim", "base": "demo", "criterion": {"name": "taylor"}, **case.entries}
        recipe |= {"calibration": text | case.entries.get("calibration", {}), "evaluation": text}
        recipe |= {"recovery": self._recovery(case), "seed": seed}
        return PruneSpec(
            recipe=Recipe.model_validate(recipe),
            base=DEMO / "base",
            adapters={},
            calibration=DEMO / "text" / "calibration.txt",
            evaluation=DEMO / "text" / "evaluation.txt",
        )

    def _recovery(self, case: Case) -> list[dict[str, Any]]:
        if case.recovery is None:
            return []
        params = {"tokens": 1024 if self.quick else TOKENS, "batch": 1, "checks": 2}
        params |= {"learning_rate": RATES[case.recovery], "held_out": 0.01 if self.quick else 0.02}
        return [{"name": case.recovery, "params": params}]

    def nats(self, model: Path) -> float:
        """Per token of the evaluation text."""
        return math.log(evaluation.perplexity(evaluation.load(model), self.text, quiet).token)

    def measured(self, case: Case, seed: int, work: Path) -> Row:
        """A row: the repaired base under a case."""
        asked, started = self.spec(case, seed), time.process_time()
        for stage in ("schedule", "calibrate", "plan", "slice", "recover"):
            STAGES[stage](asked, work, quiet)
        seconds, model = time.process_time() - started, slim_base(asked, work)
        rounds = work / "schedule" / "rounds.json"
        slim, dense = (Geometry.of(base).body_parameters for base in (model, DEMO / "base"))
        return {
            "comparison": case.comparison,
            "case": case.name,
            "seed": seed,
            "removed": round(1 - slim / dense, 4),
            "nats_above_dense": round(self.nats(model) - self.dense, 4),
            "cpu_seconds": round(seconds, 1),
            **({"chosen": json.loads(rounds.read_text())} if rounds.is_file() else {}),
        }


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Mean nats of every case, what it gains over the first of its comparison, and the claims."""
    nats = {(r["comparison"], r["case"], r["seed"]): r["nats_above_dense"] for r in rows}
    first: dict[str, str] = {}
    found: dict[str, Any] = {}
    gains: dict[tuple[str, str], list[float]] = {}
    for case in CASES:
        key = case.comparison, case.name
        reference = first.setdefault(*key)
        seeds = sorted(s for c, n, s in nats if (c, n) == key and (c, reference, s) in nats)
        if not seeds:
            continue
        name = "_".join(key)
        own = [nats[*key, seed] for seed in seeds]
        found[f"{name}_nats"] = round(statistics.mean(own), 4)
        if case.name == reference:
            continue
        gains[key] = [
            nats[case.comparison, reference, s] - n for s, n in zip(seeds, own, strict=True)
        ]
        found[f"{name}_gain"] = round(statistics.mean(gains[key]), 4)
        if len(seeds) > 1:
            found[f"{name}_gain_error"] = round(error(gains[key]), 4)
    found["claims"] = {
        claim: statistics.mean(gains[key]) > error(gains[key])
        for claim, key in CLAIMS.items()
        if len(gains.get(key, ())) > 2
    }
    return found


def error(values: Sequence[float]) -> float:
    """The standard error of a mean."""
    return statistics.stdev(values) / math.sqrt(len(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few tokens, short texts, one seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no row after these")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go")
    options = parser.parse_args()
    path = options.json or report.RESULTS / "schedules.json"
    keeps = bool(options.json) or not options.quick
    rows: list[Row] = json.loads(path.read_text())["rows"] if keeps and path.is_file() else []
    done = {(row["comparison"], row["case"], row["seed"]) for row in rows}
    started, bench = time.monotonic(), Bench(options.quick)
    for seed in range(1 if options.quick else options.seeds):
        for case in CASES[:2] if options.quick else CASES:
            late = time.monotonic() - started > 60 * options.minutes
            if late or (case.comparison, case.name, seed) in done:
                continue
            with tempfile.TemporaryDirectory() as work:
                rows.append(bench.measured(case, seed, Path(work)))
            say(**rows[-1])
            if keeps:
                report.write("schedules", figures(rows), rows, path)
    print(json.dumps(figures(rows), indent=2))


if __name__ == "__main__":
    main()
