"""Generated adapters against trained ones: tasks that the generator learnt, and one it never saw.

Usage: python benchmarks/generation.py DATA [--work DIRECTORY] [--minutes N] [--quick] [--json FILE]

Eight tasks are learnt and mbpp is not: five of DATA/tasks, WikiText in capitals and with its words
reversed, and files of the Python standard library.  A family is the last eight checkpoints of one
LoRA (rank 4, all linears of the bundled base), the same families for all seeds of the generator.

A generator is asked by examples of the held-out rows of a task, 16 of them; the others measure.
Recovered is (base - made) / (base - own) in nats per completion token, `own` being the last
checkpoint of the task's own family, also of the task that was not learnt:

  generated  the best of four samples on the examples
  wrong      the same for the examples of another task, a different one for each seed
  nearest    the last checkpoint of the nearest task by task vectors; never the task itself
  average    the mean ΔW of the last checkpoints of all tasks that were learnt, the task's included
  described  generated for other words than those that training has read
  left out   generated for each task by a generator of all the others, mbpp among them

Bytes are those of the generator's file against those of one float16 adapter a task.  What was
measured is kept in DIRECTORY, families included; a run with the same DIRECTORY goes on from there
and begins nothing more after N minutes.  --quick: two tasks, few steps, one seed.
"""

import argparse
import json
import random
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from statistics import mean
from typing import Any

import report
from cells import Cells, OutOfTime
from torch import Tensor

from pruning import evaluation
from pruning.adapters import algebra
from pruning.adapters.algebra import Bags
from pruning.adapters.compression import applied
from pruning.adapters.generate.conditions import states_of_rows, states_of_text
from pruning.adapters.generate.families import read_family, train_family
from pruning.adapters.generate.generation import best_of, nearest
from pruning.adapters.generate.generator import Generator, train_generator
from pruning.adapters.generate.recipes import Families, Network
from pruning.adapters.inputs import deltas_of
from pruning.evaluation import Example
from pruning.text import load_tokenizer

DEMO = Path(__file__).resolve().parent.parent / "deploy" / "demo"
SEEN = ("clinc150", "code", "e2e_nlg", "gsm8k", "reversed", "shakespeare", "upper", "wikisql")
HELD_OUT = "mbpp"
SEEDS = (0, 1, 2, 3, 4)
TRAINING_ROWS, HELD_OUT_ROWS, EXAMPLES, SAMPLES = 1200, 60, 16, 4
FAMILIES = Families(rank=4, alpha=8, steps=150, batch=4, length=96, learning_rate=5e-3)
NETWORK = Network()
WORDS = {  # what training reads of each task, and what is asked afterwards
    "clinc150": ("Name the intent of a query.", "Which intent does the query have?"),
    "code": ("Files of the Python standard library.", "Source code of Python's own library."),
    "e2e_nlg": ("Describe a restaurant from its data.", "Text about a restaurant, from a record."),
    "gsm8k": ("Solve a problem of arithmetic.", "The solution of an arithmetic problem."),
    "reversed": ("An encyclopedia, words in reverse.", "Encyclopedia text with reversed words."),
    "shakespeare": ("Scenes of plays by Shakespeare.", "A scene from a play by Shakespeare."),
    "upper": ("AN ENCYCLOPEDIA IN CAPITALS.", "ENCYCLOPEDIA TEXT, ALL CAPITALS."),
    "wikisql": ("Write SQL that answers a question.", "An SQL query for the question."),
    "mbpp": ("Write a Python function for a task.", "A Python function that does a task."),
}
Row = dict[str, Any]


def silent(fraction: float, message: str) -> None:
    """No progress."""


class Bench:
    """The bundled base, the rows of all tasks and the families, below `work`; read once."""

    def __init__(self, data: Path, work: Path, tasks: tuple[str, ...], families: Families):
        self.data, self.work, self.tasks, self.families = data, work, tasks, families
        self.rows, self.family = cache(self._rows), cache(self._family)
        self.states, self.asked, self.words = map(cache, (self._states, self._asked, self._words))
        self.generator = cache(self._generator)

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(DEMO / "base")

    @cached_property
    def model(self) -> Any:
        return evaluation.load(DEMO / "base")

    def _rows(self, task: str, split: str) -> tuple[Example, ...]:
        path = self.work / "rows" / f"{task}.{split}.jsonl"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            count = TRAINING_ROWS if split == "train" else HELD_OUT_ROWS
            found = rows_of(self.data, task, split)
            chosen = random.Random(0).sample(found, min(count, len(found)))
            path.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
        return tuple(evaluation.rows(self.tokenizer, path, self.families.length, task))

    def examples(self, task: str) -> Sequence[Example]:
        return self.rows(task, "eval")[:EXAMPLES]

    def measuring(self, task: str) -> Sequence[Example]:
        return self.rows(task, "eval")[EXAMPLES:]

    def train(self, task: str) -> None:
        """The family of a task, unless it is there."""
        out, state = self.work / "families" / task, self.work / "state" / task
        for folder in (out, state):
            folder.mkdir(parents=True, exist_ok=True)
        if not (out / f"{self.families.steps:06}.safetensors").exists():
            rows = self.rows(task, "train")
            train_family(self.model, rows, self.families, 0, out, state, silent)

    def _family(self, task: str) -> list[Bags]:
        return read_family(self.work / "families" / task)

    def _states(self, task: str) -> Tensor:
        count = self.families.demonstrations
        return states_of_rows(self.model, self.tokenizer, self.rows(task, "train")[:count])

    def _asked(self, task: str) -> Tensor:
        return states_of_rows(self.model, self.tokenizer, self.examples(task))

    def _words(self, task: str, number: int) -> Tensor:
        return states_of_text(self.model, self.tokenizer, WORDS[task][number], task)

    def _generator(self, tasks: tuple[str, ...], network: Network, seed: int) -> Generator:
        """As it comes back from its file, which is kept."""
        label = f"{'-'.join(tasks)} {network.components} {network.kl_weight:g} {network.steps}"
        path = self.work / "generators" / f"{label} {seed}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            state = Path(tempfile.mkdtemp(dir=self.work))
            trained = train_generator(
                {task: self.family(task) for task in tasks},
                {
                    "examples": [self.states(task) for task in tasks],
                    "description": [self.words(task, 0) for task in tasks],
                },
                network,
                seed,
                state,
                silent,
            )
            trained.generator.save(path)
            told = {"explained": trained.explained, "kl": trained.kl, "bytes": path.stat().st_size}
            path.with_suffix(".json").write_text(json.dumps(told))
            shutil.rmtree(state)
        return Generator.load(path)

    def told(self, tasks: tuple[str, ...], network: Network, seed: int) -> Row:
        """What the training of a generator tells of it."""
        self.generator(tasks, network, seed)
        label = f"{'-'.join(tasks)} {network.components} {network.kl_weight:g} {network.steps}"
        found: Row = json.loads((self.work / "generators" / f"{label} {seed}.json").read_text())
        return found

    def loss(self, bags: Bags | None, task: str) -> float:
        with applied(self.model, deltas_of(bags or {})):
            return evaluation.completion_loss(self.model, self.measuring(task), silent)

    def average(self, tasks: Sequence[str]) -> Bags:
        last = [self.family(task)[-1] for task in tasks]
        weights = [1 / len(last)] * len(last)
        return {key: algebra.cat([bags[key] for bags in last], weights) for key in last[0]}


def rows_of(data: Path, task: str, split: str) -> list[dict[str, str]]:
    """All rows of a task; those of different splits are different."""
    if (data / "tasks" / task).is_dir():
        return lines(data / "tasks" / task / f"{split}.jsonl")
    if task == "mbpp":
        known = [
            {"prompt": f"Task: {row['text']}\nCode:", "completion": " " + clean(row["code"])}
            for row in lines(data / "mbpp" / "mbpp.jsonl")
        ]
        return known[100:] if split == "train" else known[:100]
    texts = library(split) if task == "code" else articles(data, task, split)
    return [{"prompt": "", "completion": text} for text in texts]


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def clean(code: str) -> str:
    return code.replace("\r", "")


def library(split: str) -> Iterator[str]:
    """Pieces of the standard library of this Python; every tenth file is held out."""
    for number, path in enumerate(sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))):
        if (number % 10 == 0) == (split == "eval"):
            text = path.read_text(encoding="utf-8", errors="replace")
            yield from (text[start : start + 400] for start in range(0, len(text) - 400, 4000))


def articles(data: Path, task: str, split: str) -> Iterator[str]:
    """The first sixty words of longer paragraphs of WikiText-2, in capitals or reversed."""
    name = {"train": "train.txt", "eval": "test.txt"}[split]
    for line in (data / "wikitext-2" / name).read_text(encoding="utf-8").split("\n"):
        if len(words := line.split()[:60]) == 60:
            yield " ".join(words).upper() if task == "upper" else " ".join(reversed(words))


@dataclass(frozen=True)
class Run:
    """Everything that is measured, cell by cell."""

    bench: Bench
    cells: Cells
    network: Network

    @property
    def seen(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.bench.tasks) - {HELD_OUT}))

    def reference(self, what: str, task: str) -> float:
        """The loss of the base, of the task's own adapter, or of the average of all learnt."""
        bags = {
            "base": lambda: None,
            "own": lambda: self.bench.family(task)[-1],
            "average": lambda: self.bench.average(self.seen),
        }[what]
        found: float = self.cells.get([what, task], lambda: self.bench.loss(bags(), task))
        return found

    def row(self, what: str, task: str, loss: float, **more: Any) -> Row:
        base, own = self.reference("base", task), self.reference("own", task)
        losses = {"base": base, "own": own, "loss": loss}
        found = {name: round(value, 4) for name, value in losses.items()}
        recovered = round((base - loss) / (base - own), 4)
        return {"what": what, "task": task, **more, **found, "recovered": recovered}

    def made(self, task: str, by: str, tasks: tuple[str, ...], network: Network, seed: int) -> Row:
        """Generated for one task by the examples of one, maybe another."""

        def measure() -> Row:
            generator = self.bench.generator(tasks, network, seed)
            vector, near = nearest(generator, "examples", self.bench.asked(by))
            latents = generator.latents(SAMPLES, seed)
            candidates = [generator.make("examples", vector, z) for z in latents]
            chosen, losses = best_of(candidates, self.bench.model, self.bench.examples(by))
            return {
                "loss": self.bench.loss(candidates[chosen], task),
                "nearest": near.task,
                "distance": round(near.distance, 4),
                "largest_distance": round(near.largest, 4),
                "spread": round(max(losses) - min(losses), 4),
            }

        what = ["made", task, by, list(tasks), network.components, network.kl_weight, seed]
        found: Row = self.cells.get(what, measure)
        return found

    def described(self, task: str, seed: int) -> Row:
        """Generated for one task by words that training has not read."""

        def measure() -> Row:
            generator = self.bench.generator(self.seen, self.network, seed)
            vector, near = nearest(generator, "description", self.bench.words(task, 1))
            bags = generator.make("description", vector, generator.latents(1, seed)[0])
            loss = self.bench.loss(bags, task)
            return {
                "loss": loss,
                "nearest": near.task,
                "distance": round(near.distance, 4),
                "largest_distance": round(near.largest, 4),
            }

        found: Row = self.cells.get(["described", task, seed], measure)
        return found

    def nearest(self, task: str) -> Row:
        """The last adapter of the nearest other task."""

        def measure() -> Row:
            generator = self.bench.generator(self.seen, self.network, SEEDS[0])
            known = generator.conditions["examples"]
            vector = known.vector(self.bench.asked(task))
            distances = {
                other: float((vector - known.vectors_Th[i]).square().mean())
                for i, other in enumerate(generator.tasks)
                if other != task
            }
            other = min(distances, key=distances.__getitem__)
            return {"nearest": other, "loss": self.bench.loss(self.bench.family(other)[-1], task)}

        found: Row = self.cells.get(["nearest", task], measure)
        return found

    def references(self) -> Iterator[Row]:
        for task in self.bench.tasks:
            for what in ("base", "own", "average"):
                yield self.row(what, task, self.reference(what, task))
            yield self.row("nearest", task, **self.nearest(task))

    def generated(self, seed: int) -> Iterator[Row]:
        """Each learnt task by its own examples and by those of another, and the one not learnt."""
        for number, task in enumerate(self.seen):
            other = self.seen[(number + 1 + seed) % len(self.seen)]
            for what, by in (("generated", task), ("wrong", other)):
                found = self.made(task, by, self.seen, self.network, seed)
                yield self.row(what, task, seed=seed, **found)
        if HELD_OUT in self.bench.tasks:
            found = self.made(HELD_OUT, HELD_OUT, self.seen, self.network, seed)
            yield self.row("held out", HELD_OUT, seed=seed, **found)

    def left_out(self) -> Iterator[Row]:
        for task in self.bench.tasks:
            others = tuple(sorted(set(self.bench.tasks) - {task}))
            found = self.made(task, task, others, self.network, SEEDS[0])
            yield self.row("left out", task, seed=SEEDS[0], **found)

    def by_words(self) -> Iterator[Row]:
        for task in self.seen:
            yield self.row("described", task, seed=SEEDS[0], **self.described(task, SEEDS[0]))

    def variants(self) -> Iterator[Row]:
        """Fewer directions, and other weights of the divergence."""
        whole = (len(self.seen) - 1) * 8
        changes: Sequence[Row] = [
            *({"components": count} for count in (16, 32, 40, 48) if count < whole),
            *({"kl_weight": weight} for weight in (1e-2, 1e-4)),
        ]
        for change in changes:
            network = self.network.model_copy(update=change)
            for task in self.seen:
                found = self.made(task, task, self.seen, network, SEEDS[0])
                yield self.row("variant", task, seed=SEEDS[0], **change, **found)
            yield {"what": "generator", **change, **self.size(network, SEEDS[0])}

    def size(self, network: Network, seed: int) -> Row:
        generator = self.bench.generator(self.seen, network, seed)
        told = self.bench.told(self.seen, network, seed)
        one = 2 * generator.layout.numbers
        return {
            "seed": seed,
            "bytes": told["bytes"],
            "adapter_bytes": one,
            "bytes_over_adapters_bytes": round(told["bytes"] / one / len(self.seen), 4),
            "break_even": -(-told["bytes"] // one),
            "parameters": generator.parameters,
            "explained": round(told["explained"], 4),
            "kl": round(told["kl"], 5),
        }


def parts(run: Run, seeds: Sequence[int], quick: bool) -> Iterator[Iterator[Row]]:
    yield run.references()
    for seed in seeds:
        yield run.generated(seed)
        yield iter([{"what": "generator", **run.size(run.network, seed)}])
    yield run.by_words()
    if not quick:
        yield run.left_out()
        yield run.variants()


def figures(rows: Sequence[Row]) -> Row:
    """Means over tasks and seeds, of the rows that there are."""

    def chosen(what: str, seen: bool = True) -> list[Row]:
        return [r for r in rows if r["what"] == what and (r["task"] != HELD_OUT) == seen]

    def recovered(what: str, seen: bool = True) -> float | None:
        values = [row["recovered"] for row in chosen(what, seen)]
        return round(mean(values), 4) if values else None

    generated = chosen("generated")
    by_task: Mapping[str, float] = {
        task: mean(r["recovered"] for r in generated if r["task"] == task)
        for task in {row["task"] for row in generated}
    }
    sizes = [row for row in rows if row["what"] == "generator" and len(row) == 9]
    found = {
        "seen_recovered": recovered("generated"),
        "seen_recovered_worst_task": round(min(by_task.values()), 4) if by_task else None,
        "nearest_recovered": recovered("nearest"),
        "average_recovered": recovered("average"),
        "wrong_condition_recovered": recovered("wrong"),
        "described_recovered": recovered("described"),
        "heldout_recovered": recovered("held out", seen=False),
        "heldout_nearest_recovered": recovered("nearest", seen=False),
        "heldout_average_recovered": recovered("average", seen=False),
        "left_out_recovered": recovered("left out"),
        "generator_bytes_over_adapters_bytes": sizes[0]["bytes_over_adapters_bytes"]
        if sizes
        else None,
        "break_even_adapters": sizes[0]["break_even"] if sizes else None,
    }
    for name, kinds in (("seen", ("generated",)), ("unseen", ("held out", "left out"))):
        asked = [row for row in rows if row["what"] in kinds]
        if asked:
            refused = sum(row["distance"] > row["largest_distance"] for row in asked)
            found[f"{name}_refused"] = round(refused / len(asked), 4)
    return {name: value for name, value in found.items() if value is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    quick: bool = options.quick
    tasks = ("clinc150", "wikisql") if quick else (*SEEN, HELD_OUT)
    size = Families(steps=6, batch=2, length=48, checkpoints=2, demonstrations=8)
    bench = Bench(options.data, work, tasks, size if quick else FAMILIES)
    cells = Cells(work / "cells.jsonl", options.minutes)
    run = Run(bench, cells, Network(steps=50) if quick else NETWORK)
    rows: list[Row] = []
    try:
        for task in tasks:
            cells.get(["family", task], partial(bench.train, task))
        for part in parts(run, SEEDS[:1] if quick else SEEDS, quick):
            rows.extend(part)
    except OutOfTime:
        print("out of time; run again with the same --work")
    found = figures(rows)
    print(json.dumps(found, indent=2))
    print(report.write("generation", found, rows, options.json))


if __name__ == "__main__":
    main()
