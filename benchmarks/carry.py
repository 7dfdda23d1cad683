"""Carrying adapters through a cut: how much of what index selection loses comes back, at what cost.

Usage: python benchmarks/carry.py DATA [--work DIR] [--minutes M] [--quick] [--json FILE]

DATA/tasks/NAME/train.jsonl are training rows of the tasks; ROWS of each, spread evenly, are an
adapter's own text, and the bundled eval.jsonl, held out from training, measures it.  Adapters of
rank 8 are the bundled ones; those of ranks 4 and 16 are trained first, by deploy/demo/train, with
half of their steps.  The base is cut to 75 % and 50 % of its body (obs, refit in closed form), and
each adapter carried by index (project), refit, and refit and distilled in 50 steps.

carry_gap_closed_NN is the part of the perplexity (per completion token) that project adds to the
dense base with its adapter and refit takes away again, the mean over adapters; _nats the same of
the loss, _50steps after distillation, _least the worst of all cells, _cells how many there are.
carry_32_over_1 is what a whole job, report included, that refits 32 adapters takes over one with a
single adapter, half of the default texts and all stages in this process; carry_job_32_over_1 the
same of the job as a worker runs it: 128 sequences of 256 tokens to calibrate, 128 windows to
evaluate, every stage a process of its own, published in the end.  Both are ratios of the seconds
that cores were busy, which other load moves less than those of the clock, over three turns that
jobs of one and of many take; the rows tell both.

With --work everything lies in DIR, and what is found there is not made again: stop it at any time,
or let it stop by itself before a row that would begin after M minutes, and report the rows so far.
--quick takes two adapters of rank 8 and less text, and neither distils nor takes times.
"""

import argparse
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import report
from torch import get_num_threads

from pruning import evaluation
from pruning.jobs.kinds import stages_of
from pruning.jobs.outputs import slim_base
from pruning.jobs.runner import Runner
from pruning.pipeline import STAGES
from pruning.recipe import PruneSpec, Recipe
from pruning.text import load_tokenizer

DEMO = Path(__file__).parent.parent / "deploy" / "demo"
TASKS = ("clinc150", "e2e_nlg", "wikisql")
RANKS = (8, 4, 16)
TRAINING_STEPS = 200  # of adapters that are not bundled
TARGETS = (0.25, 0.5)
STEPS = 50
CARRY_SEQUENCES = 32  # half as many tokens, 4,096, an adapter is refit on at most
WAYS: Mapping[str, dict[str, Any] | None] = {
    "dense": None,
    "project": {"carry": "project"},
    "refit": {"carry": "refit"},
    "distilled": {"carry": "refit", "carry_distill": {"steps": STEPS}},
}
JOB = ("calibrate", "plan", "slice", "recover", "carry", "evaluate")
MANY = 32
DEFAULT = 128  # sequences, of 256 tokens
IN_PROCESS = "64 sequences, one process"
AS_RUN = "128 sequences, a process for each stage"
TURNS = 3  # that jobs of one and of many adapters take

Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """Where the tasks are, where results go, and how much of everything is taken."""

    data: Path
    work: Path
    quick: bool

    @property
    def rows(self) -> int:
        return 40 if self.quick else 1600

    @property
    def sequences(self) -> int:
        return 16 if self.quick else 64

    def adapter(self, task: str, rank: int) -> Path:
        """A copy of an adapter, trained if need be, with training rows of its task as its text."""
        adapter = self.work / "adapters" / f"{task}-r{rank}"
        if not (adapter / "calibration.jsonl").is_file():
            source = DEMO / "adapters" if rank == 8 else self.work / "trained" / f"r{rank}"
            if not (source / task / "eval.jsonl").is_file():
                self._train(task, rank, source)
            own_text = shutil.ignore_patterns("calibration.jsonl")  # a longer one is made here
            shutil.copytree(source / task, adapter, ignore=own_text, dirs_exist_ok=True)
            shutil.copyfile(DEMO / "adapters" / task / "eval.jsonl", adapter / "eval.jsonl")
            self._add_text(task, adapter)
        return adapter

    def _train(self, task: str, rank: int, out: Path) -> None:
        command = [sys.executable, DEMO / "train" / "adapters.py", self.data, DEMO / "base", out]
        options = ["--tasks", task, "--rank", rank, "--steps", TRAINING_STEPS]
        subprocess.run([*map(str, command), *map(str, options)], check=True)

    def _add_text(self, task: str, adapter: Path) -> None:
        lines = (self.data / "tasks" / task / "train.jsonl").read_text(encoding="utf-8").split("\n")
        lines = [line for line in lines if line.strip()]
        chosen = lines[:: max(1, len(lines) // self.rows)][: self.rows]
        (adapter / "calibration.jsonl").write_text("\n".join(chosen) + "\n", encoding="utf-8")

    def spec(
        self, adapters: Mapping[str, Path], target: float, sequences: int, **changes: Any
    ) -> PruneSpec:
        text = {"file": "text/calibration.txt", "sequences": sequences}
        recipe = {
            "name": "carry",
            "base": "demo",
            "target": target,
            "criterion": {"name": "obs"},
            "recovery": [{"name": "closed_form"}],
            "calibration": text,
            "evaluation": text,
        }
        return PruneSpec(
            recipe=Recipe.model_validate(recipe | changes),
            base=DEMO / "base",
            adapters=dict(adapters),
            calibration=DEMO / "text" / "calibration.txt",
            evaluation=DEMO / "text" / "evaluation.txt",
        )

    def cut(self, target: float) -> Path:
        """The work directory of a cut."""
        work = self.work / f"cut-{target:.0%}"
        if not (work / "done").is_file():
            work.mkdir(exist_ok=True)
            for stage in ("calibrate", "plan", "slice", "recover"):
                STAGES[stage](self.spec({}, target, self.sequences), work, quiet)
            (work / "done").touch()
        return work


def cells(bench: Bench) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Names of all rows, and how to make them."""
    ranks, tasks = (RANKS[:1], TASKS[:2]) if bench.quick else (RANKS, TASKS)
    for how in list(WAYS)[: 3 if bench.quick else 4]:
        for rank, target, task in itertools.product(ranks, TARGETS, tasks):
            name = f"{how} {task} r{rank} {target:.0%}"
            yield name, partial(measured, bench, task, rank, target, how)
    for turn, count in itertools.product(() if bench.quick else range(TURNS), (1, MANY)):
        yield f"job of {count}, turn {turn}", partial(timed, bench, count)
        yield f"default job of {count}, turn {turn}", partial(timed_default, bench, count)


def measured(bench: Bench, task: str, rank: int, target: float, how: str) -> Row:
    """The loss of an adapter, on the dense base or carried, and what the carrying took."""
    row: Row = {"adapter": task, "rank": rank, "target": target, "how": how}
    adapter, changes = bench.adapter(task, rank), WAYS[how]
    if changes is None:
        return row | {"loss": dense_loss(adapter)}
    cut, asked = bench.cut(target), bench.spec({task: adapter}, target, CARRY_SEQUENCES, **changes)
    started = time.monotonic()
    STAGES["carry"](asked, cut, quiet)
    row["seconds"] = round(time.monotonic() - started, 1)
    return row | {"loss": loss(slim_base(asked, cut), cut / "carry" / "adapters" / task)}


@cache
def dense_loss(adapter: Path) -> float:
    return loss(DEMO / "base", adapter)


def loss(base: Path, adapter: Path) -> float:
    """Nats per completion token."""
    model = evaluation.with_adapter(evaluation.load(base), adapter)
    examples = evaluation.rows(load_tokenizer(DEMO / "base"), adapter / "eval.jsonl", 512, "rows")
    return round(evaluation.completion_loss(model, examples, quiet), 4)


def timed(bench: Bench, count: int) -> Row:
    """Seconds of every stage of a job that refits so many adapters, all in this process."""
    spec, work = job_of(bench, count, bench.sequences)
    row: Row = {"adapters": count, "job": IN_PROCESS}
    busy = cpu_seconds()
    for stage in JOB:
        started = time.monotonic()
        STAGES[stage](spec, work, quiet)
        row[stage] = round(time.monotonic() - started, 1)
    return row | {"cpu_seconds": round(cpu_seconds() - busy, 1), "threads": get_num_threads()}


def timed_default(bench: Bench, count: int) -> Row:
    """The same of the job as a worker runs it, on the default amount of text."""
    spec, work = job_of(bench, count, DEFAULT)
    (work / "spec.json").write_text(spec.model_dump_json())
    row: Row = {"adapters": count, "job": AS_RUN}
    run, busy = Runner(), cpu_seconds()
    for stage in stages_of(spec.recipe):
        row[stage] = round(run(stage, work, quiet, lambda: False).seconds, 1)
    return row | {"cpu_seconds": round(cpu_seconds() - busy, 1), "threads": get_num_threads()}


def job_of(bench: Bench, count: int, sequences: int) -> tuple[PruneSpec, Path]:
    """A job that refits so many adapters, and an empty work directory."""
    sources = [bench.adapter(task, rank) for task in TASKS for rank in RANKS]
    adapters = {f"tenant-{i}": sources[i % len(sources)] for i in range(count)}
    work = bench.work / "job"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    return bench.spec(adapters, 0.25, sequences, carry="refit"), work


def cpu_seconds() -> float:
    """That this process and those it started have been busy, on all cores together."""
    return sum(os.times()[:4])


def figures(rows: list[Row]) -> dict[str, float]:
    """Means over the adapters that were carried in that way, and ratios of times."""
    losses = {
        (row["adapter"], row["rank"], row["target"], row["how"]): row["loss"]
        for row in rows
        if "how" in row
    }
    found: dict[str, float] = {}
    for target in TARGETS:
        name = f"carry_gap_closed_{round(100 * target)}"
        found |= closed(name, losses, "refit", (target,))
        found |= closed(f"{name}_50steps", losses, "distilled", (target,))
    found |= closed("carry_gap_closed_50steps", losses, "distilled", TARGETS)
    jobs = {"carry_32_over_1": IN_PROCESS, "carry_job_32_over_1": AS_RUN}
    for name, how in jobs.items():
        found |= job_ratio(name, [row for row in rows if row.get("job") == how])
    return found


def job_ratio(name: str, rows: list[Row]) -> dict[str, float]:
    """How busy jobs with MANY adapters keep the cores over those with one, all turns together."""
    one, many = (sum(r["cpu_seconds"] for r in rows if r["adapters"] == n) for n in (1, MANY))
    return {name: round(many / one, 2)} if one and many else {}


def closed(
    name: str, losses: Mapping[tuple[Any, ...], float], how: str, targets: Sequence[float]
) -> dict[str, float]:
    """Parts of the gap that a way of carrying closes: of perplexity and of nats."""
    cells = [key[:3] for key in losses if key[3] == how and key[2] in targets]
    if not cells:
        return {}

    def parts(of: Callable[[float], float]) -> list[float]:
        found = []
        for cell in cells:
            dense, project, carried = (of(losses[*cell, w]) for w in ("dense", "project", how))
            found.append((project - carried) / (project - dense))
        return found

    perplexity, nats = parts(math.exp), parts(float)
    return {
        name: round(sum(perplexity) / len(cells), 3),
        f"{name}_cells": len(cells),
        f"{name}_least": round(min(perplexity), 3),
        f"{name}_nats": round(sum(nats) / len(cells), 3),
    }


def run(bench: Bench, minutes: float) -> list[Row]:
    """All rows for which there is time; those that were made before are read."""
    end = time.monotonic() + 60 * minutes
    path = bench.work / "rows.json"
    done: dict[str, Row] = json.loads(path.read_text()) if path.is_file() else {}
    names = []
    for name, make in cells(bench):
        if name not in done:
            if time.monotonic() > end:
                continue
            done[name] = make()
            path.write_text(json.dumps(done))
        print(name, done[name], flush=True)
        names.append(name)
    return [done[name] for name in names]


def quiet(fraction: float, message: str) -> None:
    """Progress that nobody hears."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        work = options.work or Path(directory)
        work.mkdir(parents=True, exist_ok=True)
        rows = run(Bench(options.data, work, options.quick), options.minutes)
    found = figures(rows)
    print(json.dumps(found, indent=2))
    if options.json or not options.quick:
        print(report.write("carry", found, rows, options.json))


if __name__ == "__main__":
    main()
