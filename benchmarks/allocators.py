"""Allocators side by side on the bundled model: what each loses at the same number of parameters.

Usage: python benchmarks/allocators.py [--quick] [--criteria A,B] [--without-trials] [--minutes N]
       [--json FILE]

Every allocator spends the same targets with the same scores of a few criteria; what the slim model
loses against the dense one on held-out text is told in nats per token, without any recovery.
`ffn80` removes 80 % of the FFN channels alone, the other targets are fractions of the body and
take both kinds.  A seed draws the calibration text (and the mutations of search, which does
without its rounds of dynamic programming here); the two allocators that run the whole base,
rate_distortion and search, take one seed, or none --without-trials.  Seed by seed, three in all, as
far as the minutes suffice.  --quick: one criterion, one seed, one target, and no trials.
"""

import argparse
import itertools
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import report
from torch import Tensor

from pruning import methods
from pruning.allocation import budget, targets
from pruning.allocation.selection import select
from pruning.allocation.solve import problem
from pruning.allocation.trial import Trial
from pruning.calibration import collect
from pruning.importance import score_layers
from pruning.methods.entry import Statistic
from pruning.plan import Plan, Widths
from pruning.recipe import Recipe, Text
from pruning.registry import Problem, allocator
from pruning.stats import Statistics
from pruning.text import calibration_ids, load_tokenizer
from pruning.weights.checkpoint import Checkpoint

DEMO = Path(__file__).parent.parent / "deploy" / "demo"
CRITERIA = ("taylor", "magnitude", "fluctuation")
TARGETS = ("0.5", "0.25", "ffn80")
WHOLE_BASE: Mapping[str, dict[str, Any]] = {  # less than their defaults, for the sake of time
    "rate_distortion": {"levels": 4, "sequences": 4},
    "search": {"rounds": 0, "generations": 8, "offspring": 8, "sequences": 12},
}
PARAMS: Mapping[str, dict[str, Any]] = {"proportional": {"most": 0.9}, **WHOLE_BASE}
CALIBRATION = Text(file="text/calibration.txt", sequences=32, length=256)
EVALUATION = Text(file="text/evaluation.txt", sequences=12, length=256)

Row = dict[str, Any]
Rows = Iterator[list[Row]]


def quiet(fraction: float, message: str) -> None:
    """Nobody hears of the progress."""


@dataclass(frozen=True)
class Bench:
    """The bundled base, what one seed's calibration left, and the held-out text."""

    checkpoint: Checkpoint
    held_out: Trial
    calibration: Tensor
    statistics: Statistics
    seed: int

    def reseeded(self, seed: int) -> "Bench":
        """Other calibration text, all statistics of it."""
        tokenizer = load_tokenizer(self.checkpoint.directory)
        ids = calibration_ids(tokenizer, DEMO / CALIBRATION.file, CALIBRATION, seed)
        needs: set[Statistic] = {"input_moments", "saliency", "influence"}
        with tempfile.TemporaryDirectory() as work:
            statistics = collect(self.checkpoint, ids, needs, Path(work), quiet)
        return replace(self, calibration=ids, statistics=statistics, seed=seed)

    def row(self, name: str, scored: str, target: str, dense: float) -> Row:
        """One allocator at one target with one criterion."""
        problem = self.problem(name, scored, target)
        allocate, _, params = allocator(problem.recipe.allocator)
        started = time.monotonic()
        widths = allocate(problem, params)
        seconds = time.monotonic() - started
        loss = self.held_out.loss(select(problem.scores, widths, False), EVALUATION.sequences)
        return {
            "allocator": name,
            "criterion": scored,
            "target": target,
            "seed": self.seed,
            "nats_over_dense": round(loss - dense, 4),
            "missed_of_body": round(missed(problem, widths), 6),
            "seconds": round(seconds, 1),
            "kv_groups": widths.kv_groups,
            "ffn_channels": widths.ffn_channels,
        }

    def problem(self, name: str, scored: str, target: str) -> Problem:
        geometry = self.checkpoint.geometry
        channels = len(geometry.layers) * geometry.layers[0].intermediate_size
        ffn = channels * geometry.ffn_channel_parameters(0) / geometry.body_parameters
        asked = Recipe.model_validate(
            {
                "name": "slim",
                "base": "demo",
                "target": 0.8 * ffn if target == "ffn80" else float(target),
                "units": ["ffn_channel"] if target == "ffn80" else ["ffn_channel", "kv_group"],
                "criterion": {"name": scored},
                "allocator": {"name": name, "params": PARAMS.get(name, {})},
                "export": "per_layer",
                "calibration": CALIBRATION,
                "evaluation": EVALUATION,
                "seed": self.seed,
            }
        )
        budget.check(geometry, asked)
        scores = score_layers(self.checkpoint, self.statistics, asked, quiet)
        return problem(
            self.checkpoint, asked, scores, self.statistics, lambda: self.calibration, quiet
        )


def missed(problem: Problem, widths: Widths) -> float:
    """By how much of the body's parameters the target is missed."""
    geometry, costs = problem.checkpoint.geometry, problem.space.costs
    layer, num_layers = geometry.layers[0], len(geometry.layers)
    groups = num_layers * layer.num_kv_heads - sum(widths.kv_groups)
    channels = num_layers * layer.intermediate_size - sum(widths.ffn_channels)
    saved = groups * costs.kv_group + channels * costs.ffn_channel
    return abs(saved - targets.wanted(geometry, problem.recipe)) / geometry.body_parameters


def opened() -> Bench:
    """The bench without calibration."""
    checkpoint = Checkpoint(DEMO / "base")
    tokenizer = load_tokenizer(checkpoint.directory)
    ids = calibration_ids(tokenizer, DEMO / EVALUATION.file, EVALUATION, 0)
    held_out = Trial(checkpoint, ids, Statistics())
    return Bench(checkpoint, held_out, ids[:0], Statistics(), 0)


def measured(criteria: Sequence[str], aims: Sequence[str], seeds: int, trials: bool) -> Rows:
    """The rows so far, after each one."""
    bench, rows = opened(), []
    dense = bench.held_out.loss(Plan.dense(bench.checkpoint.geometry), EVALUATION.sequences)
    for seed in range(seeds):
        seeded = bench.reseeded(seed)
        names = methods.names("allocator")
        if seed or not trials:
            names = [name for name in names if name not in WHOLE_BASE]
        for target, scored, name in itertools.product(aims, criteria, names):
            rows.append(seeded.row(name, scored, target, dense))
            print(rows[-1], flush=True)
            yield rows


def figures(rows: list[Row]) -> dict[str, Any]:
    """Means by case and allocator; how often each allocator beats uniform, case by case."""
    by_case = {
        (r["allocator"], r["criterion"], r["target"], r["seed"]): r["nats_over_dense"] for r in rows
    }
    found: dict[str, Any] = {
        "nats_over_dense_of_seed_0": means([row for row in rows if row["seed"] == 0]),
        "nats_over_dense_of_all_seeds": means(
            [row for row in rows if row["allocator"] not in WHOLE_BASE]
        ),
    }
    for name in methods.names("allocator"):
        cases = [key[1:] for key in by_case if key[0] == name and ("uniform", *key[1:]) in by_case]
        better = sum(by_case[name, *case] < by_case["uniform", *case] for case in cases)
        if name != "uniform" and cases:
            found[f"{name}_beats_uniform"] = f"{better} of {len(cases)}"
    found["largest_miss_of_body"] = max(row["missed_of_body"] for row in rows)
    return found


def means(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Nats over dense by target with criterion and by allocator, the mean over seeds."""
    cells: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        case = f"{row['target']} {row['criterion']}"
        cells.setdefault((case, row["allocator"]), []).append(row["nats_over_dense"])
    table: dict[str, dict[str, float]] = {}
    for (case, name), values in cells.items():
        table.setdefault(case, {})[name] = round(mean(values), 3)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--criteria", default=",".join(CRITERIA))
    parser.add_argument("--without-trials", action="store_true")
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    criteria, trials = options.criteria.split(","), not options.without_trials
    if options.quick:
        found = measured(criteria[:1], TARGETS[:1], 1, False)
    else:
        found = measured(criteria, TARGETS, 3, trials)
    end = time.monotonic() + 60 * options.minutes
    for rows in itertools.takewhile(lambda _: time.monotonic() < end, found):
        path = report.write("allocators", figures(rows), rows, options.json)
    print(path)


if __name__ == "__main__":
    main()
