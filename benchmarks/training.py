"""Training adapters: each method beside what its paper compares it with, at its own best rate.

Usage: python benchmarks/training.py DATA [--quick] [--work DIRECTORY] [--minutes N] [--json FILE]

Adapters of the bundled base on DATA/tasks/TASK/train.jsonl (wikisql), as many steps for all.  Each
method's learning rate is the one with the lowest loss on validation rows with the first seed, of
RATES and, while the best one is at an end, of those that go on there; figures are ratios of losses
on other rows (nats per completion token), the mean over the seeds, which draw the rows, their order
and what methods draw.  Recovery methods train a base that was cut by 80 % of its FFN channels, on
the bundled text; their figures are ratios of what is left of the distance to the dense base, or the
share of it that is closed.  Their memory is measured in processes of their own, on a random base of
WIDE.
With --work, what is measured is kept there, and a run that was stopped is taken up again.
"""

import argparse
import json
import math
import random
import shutil
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import report
import torch
from cells import Cells, OutOfTime

from pruning import evaluation
from pruning.adapters import algebra, atoms
from pruning.adapters.algebra import Bag
from pruning.adapters.atoms import Key
from pruning.adapters.compression import applied
from pruning.adapters.form import nola
from pruning.adapters.inputs import deltas_of
from pruning.adapters.peft_format import WEIGHTS
from pruning.adapters.train import job
from pruning.adapters.train.loop import Lesson, Unlearning, fit
from pruning.adapters.train.recipes import TrainRecipe
from pruning.adapters.train.tuned import Around, Tuned
from pruning.evaluation import Example
from pruning.geometry import Geometry
from pruning.pipeline import STAGES
from pruning.recipe import PruneSpec, Recipe
from pruning.text import load_tokenizer
from pruning.weights.header import read_header

DEMO = Path(__file__).parent.parent / "deploy" / "demo"
BASE = DEMO / "base"
TASK, REMEMBERED, FORGOTTEN = "wikisql", "e2e_nlg", "gsm8k"
RATES = (1e-3, 4e-3, 1.6e-2)
LENGTH = 64
RANKS = (1, 2, 4)  # that a nested adapter is asked for
CORE = {"rank": 16, "form": {"name": "core"}}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "eva": {"init": {"name": "eva"}},
    "lora_ga": {"init": {"name": "lora_ga"}},
    "allora": {"hooks": [{"name": "allora"}]},
    "lora_xs": {"init": {"name": "lora_xs"}} | CORE,
    "lora_sb": {"init": {"name": "lora_sb"}} | CORE,
    "nola": {"form": {"name": "nola"}},
    "lora_r1": {"rank": 1, "alpha": 2},
    "randlora": {"form": {"name": "randlora"}, "rank": 32, "alpha": 32},
    "lora_r16": {"rank": 16, "alpha": 32},
    "sora": {"form": {"name": "gated"}, "rank": 16, "alpha": 32},
    "flexora": {"ranks": {"name": "flexora"}},
    "random_half": {},  # of the layers, drawn by the seed
    "cfsp_ranks": {"ranks": {"name": "cfsp"}},
    "dylora": {"form": {"name": "nested"}},
    "eva_allora": {"init": {"name": "eva"}, "hooks": [{"name": "allora"}]},
    "pissa": {"init": {"name": "pissa"}},
    "olora": {"init": {"name": "olora"}},
}
PAIRS = {  # figure → method and what it is compared with
    "eva_vs_lora": ("eva", "lora"),
    "loraga_vs_lora": ("lora_ga", "lora"),
    "allora_vs_lora": ("allora", "lora"),
    "losb_vs_loxs": ("lora_sb", "lora_xs"),
    "randlora_vs_lora": ("randlora", "lora"),
}
OTHERS = {
    "eva_allora_vs_allora": ("eva_allora", "allora"),
    "nola_vs_lora_r1": ("nola", "lora_r1"),
    "flexora_vs_lora": ("flexora", "lora"),
    "flexora_vs_random_half": ("flexora", "random_half"),
    "cfsp_ranks_vs_lora": ("cfsp_ranks", "lora"),
    "pissa_vs_lora": ("pissa", "lora"),
    "olora_vs_lora": ("olora", "lora"),
}
RECOVERY: dict[str, dict[str, Any]] = {
    "lora": {},
    "lisa": {"layers": 2, "every": 10},
    "owlore": {"layers": 2, "every": 10},
    "align": {},  # all weights but the output head, which is tied to the embedding
    "norms": {},  # PERP's cheapest: norms and biases alone
    "masked_lora": {},  # and with its LoRA
}
WIDE = {  # the base whose recovery's memory is measured; 50 million parameters
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 64,
}
NARROW = WIDE | {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How much is trained and measured."""

    steps: int
    rows: int
    validation: int
    test: int
    seeds: int
    rates: tuple[float, ...]


FULL, QUICK = Size(50, 512, 32, 100, 3, RATES), Size(2, 16, 4, 4, 1, RATES[1:2])
QUICK_FIGURES = ("forget_ratio", "losb_vs_loxs", "allora_vs_lora", "nola_bytes_over_lora_r1")


class Bench:
    """Rows of tasks in the base's tokens, and trainings on them."""

    def __init__(self, data: Path, size: Size, cells: Cells):
        self.data, self.size, self.cells = data, size, cells
        self.tokenizer = load_tokenizer(BASE)

    def rows(self, task: str, part: str, count: int, seed: int) -> list[Example]:
        """So many rows of a part of a task, drawn by the seed."""
        path = self.data / "tasks" / task / f"{part}.jsonl"
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            file.write("\n".join(random.Random(seed).sample(lines, min(count, len(lines)))))
            file.flush()
            return evaluation.rows(self.tokenizer, Path(file.name), LENGTH, task)

    def lesson(self, task: str, seed: int, count: int) -> Lesson:
        """Rows to train on, and some that choose rates and the best step."""
        judges = self.size.validation
        rows = self.rows(task, "train", count + judges, seed)
        return Lesson(rows[judges:], rows[:judges])

    def test(self, task: str) -> list[Example]:
        """The same held-out rows for all."""
        return self.rows(task, "eval", self.size.test, 0)

    def trained(
        self,
        method: Mapping[str, Any],
        rate: float,
        seed: int,
        lesson: Lesson,
        unlearning: Unlearning | None = None,
        **hyper: Any,
    ) -> tuple[Tuned, float]:
        """What a method makes of the base, and its best validation loss.

        Of one check, which is at the end, the last weights count, however good they are.
        """
        asked = {"steps": self.size.steps, "learning_rate": rate, "checks": 3, "patience": 3}
        recipe = TrainRecipe.model_validate(
            {
                "name": "made",
                "base": "demo",
                "training": {"file": "given"},
                "seed": seed,
                "hooks": [],
                "hyperparameters": asked | hyper,
                **method,
            }
        )
        model = evaluation.load(BASE)
        keys = job.keys_of(recipe, Geometry.of(BASE))
        starts = job.starts(model, recipe, keys, lesson.training)
        tuned, around = job.attach(model, recipe, starts, recipe.hyperparameters.num_steps(0))
        last = Around()
        last.keeps_last = recipe.hyperparameters.checks == 1
        with tempfile.TemporaryDirectory() as state:
            outcome = fit(
                tuned,
                [*around, last],
                lesson,
                recipe.hyperparameters,
                seed,
                Path(state),
                quiet,
                unlearning,
            )
        return tuned, outcome.best_loss

    def run(self, name: str, rate: float, seed: int) -> Row:
        """One training of a method: nats on validation and test rows, numbers trained, bytes."""

        def measure() -> Row:
            lesson = self.lesson(TASK, seed, self.size.rows)
            method = METHODS[name]
            if name == "random_half":
                layers = range(len(Geometry.of(BASE).layers))
                method = {"layers": random.Random(seed).sample(layers, len(layers) // 2)}
            tuned, validation = self.trained(method, rate, seed, lesson)
            bags = tuned.bake()
            found: Row = {"method": name, "rate": rate, "seed": seed, "validation": validation}
            found["test"] = loss(bags, self.test(TASK))
            found["numbers"] = sum(p.numel() for p in tuned.parameters.values())
            found["bytes"] = size_of(tuned, bags, seed, compact=name == "nola")
            if name == "sora":
                found["ranks"] = {f"{k[0]}.{k[1]}": bag.rank for k, bag in bags.items()}
            return found

        return dict(self.cells.get(["run", name, rate, seed], measure))

    def best_rate(self, name: str) -> float:
        """That with the lowest validation loss of the first seed."""
        return best_of(self.size.rates, lambda rate: float(self.run(name, rate, 0)["validation"]))

    def all_seeds(self, name: str) -> list[Row]:
        """A method at its best rate."""
        rate = self.best_rate(name)
        return [self.run(name, rate, seed) for seed in range(self.size.seeds)]

    def truncated(self, seed: int) -> Row:
        """LoRA of rank 16, of each linear as many atoms as SoRA left it, the longest ones."""
        rate, ranks = self.best_rate("lora_r16"), self.run("sora", self.best_rate("sora"), seed)

        def measure() -> Row:
            lesson = self.lesson(TASK, seed, self.size.rows)
            bags = self.trained(METHODS["lora_r16"], rate, seed, lesson)[0].bake()
            kept = {
                key: longest(bag, ranks["ranks"][name])
                for key, bag in bags.items()
                if (name := f"{key[0]}.{key[1]}") in ranks["ranks"]
            }
            return {"method": "lora_r16 cut", "rate": rate, "seed": seed} | {
                "test": loss(kept, self.test(TASK)),
                "whole": loss(bags, self.test(TASK)),
            }

        return dict(self.cells.get(["truncated", seed], measure))

    def prefixes(self, name: str, seed: int) -> Row:
        """Of a method at its best rate: nats with a few of its atoms."""
        rate = self.best_rate(name)

        def measure() -> Row:
            lesson = self.lesson(TASK, seed, self.size.rows)
            bags = self.trained(METHODS[name], rate, seed, lesson)[0].bake()
            found = prefixes(bags, self.test(TASK), nested=name == "dylora")
            return {"method": f"{name} prefixes", "rate": rate, "seed": seed, "prefixes": found}

        return dict(self.cells.get(["prefixes", name, seed], measure))

    def overfit(self, name: str, rate: float, seed: int) -> Row:
        """Ten passes over 64 rows, judged as it stands in the end."""

        def measure() -> Row:
            lesson = self.lesson(TASK, seed, min(64, self.size.rows))
            hooks = [{"name": "ggpo"}] if name == "ggpo" else []
            steps = 80 if self.size is FULL else 2
            method = {"hooks": hooks}
            tuned, validation = self.trained(method, rate, seed, lesson, steps=steps, checks=1)
            found = {"method": f"{name} overfit", "rate": rate, "seed": seed}
            return found | {"validation": validation, "test": loss(tuned.bake(), self.test(TASK))}

        return dict(self.cells.get(["overfit", name, rate, seed], measure))

    def all_overfit(self, name: str) -> list[Row]:
        """At the rate whose last weights did best on validation rows with the first seed."""
        rate = best_of(self.size.rates, lambda r: float(self.overfit(name, r, 0)["validation"]))
        return [self.overfit(name, rate, seed) for seed in range(self.size.seeds)]

    def forgetting(self, name: str, seed: int) -> Row:
        """Forget one task while another is replayed: GS-LoRA, or ascent without its bound."""

        def measure() -> Row:
            keep = self.lesson(REMEMBERED, seed, self.size.rows)
            lose = self.lesson(FORGOTTEN, seed, self.size.rows)
            bound = math.log(Geometry.of(BASE).vocab_size) if name == "gs_lora" else 1e9
            hooks = [{"name": "group_lasso"}] if name == "gs_lora" else []
            ffn = ["gate_proj", "up_proj", "down_proj"]
            method = {"hooks": hooks, "linears": ffn}
            unlearning = Unlearning(lose, 0.2, bound)
            bags = self.trained(method, RATES[1], seed, keep, unlearning, patience=50)[0].bake()
            found: Row = {"method": name, "rate": RATES[1], "seed": seed, "linears": len(bags)}
            for what, task in (("forget", FORGOTTEN), ("remain", REMEMBERED)):
                before, after = loss({}, self.test(task)), loss(bags, self.test(task))
                found[f"{what}_before"], found[f"{what}_after"] = before, after
            return found

        return dict(self.cells.get(["forgetting", name, seed], measure))


class Recovery:
    """The bundled base without 80 % of its FFN channels, and what repairs it."""

    def __init__(self, work: Path, size: Size, cells: Cells):
        self.work, self.size, self.cells = work, size, cells
        self.tokens = 32_768 if size is FULL else 512

    def spec(self, seed: int, *recovery: Mapping[str, Any]) -> PruneSpec:
        text = {"file": "bundled", "sequences": 32 if self.size is FULL else 4, "length": 64}
        recipe = {
            "name": "slim",
            "base": "demo",
            "target": 0.57,  # of the body, 71 % of which are FFNs
            "units": ["ffn_channel"],
            "criterion": {"name": "taylor"},
            "allocator": {"name": "uniform"},
            "recovery": list(recovery),
            "calibration": text,
            "training": {"file": "bundled", "sequences": 65536, "length": 64},
            "evaluation": text,
            "seed": seed,
        }
        text_file = DEMO / "text" / "calibration.txt"
        return PruneSpec(
            recipe=Recipe.model_validate(recipe),
            base=BASE,
            adapters={},
            calibration=text_file,
            training=text_file,
            evaluation=DEMO / "text" / "evaluation.txt",
        )

    def nats(self, model: Path) -> float:
        """Per token of the bundled evaluation text."""
        asked = self.spec(0)
        tokenizer = load_tokenizer(BASE)
        text = evaluation.windows(tokenizer, asked.evaluation, asked.recipe.evaluation)
        return math.log(evaluation.perplexity(evaluation.load(model), text, quiet).token)

    def cut(self, seed: int) -> Path:
        """The work directory of a seed, with its slim base."""
        work = self.work / f"cut-{seed}"
        if not (work / "slice" / "model").exists():
            work.mkdir(parents=True, exist_ok=True)
            for stage in ("calibrate", "plan", "slice"):
                STAGES[stage](self.spec(seed), work, quiet)
        return work

    def bare(self, seed: int) -> Row:
        """Nats of the dense base and of the cut one."""

        def measure() -> Row:
            slim = self.cut(seed) / "slice" / "model"
            return {"dense": self.nats(BASE), "cut": self.nats(slim)}

        return dict(self.cells.get(["cut", seed], measure))

    def run(self, name: str, rate: float, seed: int) -> Row:
        """One recovery: nats above the dense base, and bytes of the optimizer's moments."""

        def measure() -> Row:
            batch = {"batch": 4, "held_out": 0.02, "checks": 4, "patience": 4}
            params = RECOVERY[name] | batch | {"tokens": self.tokens, "learning_rate": rate}
            work = self.cut(seed)
            shutil.rmtree(work / "recover.state", ignore_errors=True)
            said = [""]
            STAGES["recover"](
                self.spec(seed, {"name": name, "params": params}),
                work,
                lambda fraction, message: said.append(message),
            )
            held_out = float(said[-1].rpartition("held out ")[2].split()[0])
            above = self.nats(work / "recover" / "model") - self.bare(seed)["dense"]
            found: Row = {"method": f"recovery {name}", "rate": rate, "seed": seed}
            return found | {"held_out": held_out, "above": above}

        return dict(self.cells.get(["recovery", name, rate, seed], measure))

    def all_seeds(self, name: str) -> list[Row]:
        """A method at the rate that did best on held-out text with the first seed."""
        rate = best_of(self.size.rates, lambda rate: float(self.run(name, rate, 0)["held_out"]))
        return [self.run(name, rate, seed) for seed in range(self.size.seeds)]

    def wide(self) -> Path:
        """The work directory of a random base that was cut."""
        work = self.work / "wide"
        if not (work / "slice" / "model").exists():
            shapes = WIDE if self.size is FULL else NARROW
            write_random(shapes, work / "base")
            for stage in ("calibrate", "plan", "slice"):
                STAGES[stage](self.spec(0).model_copy(update={"base": work / "base"}), work, quiet)
        return work

    def memory(self, name: str) -> Row:
        """Bytes of the optimizer's moments, and how far the resident memory rises at most."""

        def measure() -> Row:
            work, steps = self.wide(), 12 if self.size is FULL else 2
            batch = {"batch": 4, "held_out": 1e-4, "checks": 1, "tokens": steps * 4 * 64}
            asked = {"name": name, "params": RECOVERY[name] | batch}
            spec = self.spec(0, asked).model_copy(update={"base": work / "base"})
            shutil.rmtree(work / "recover.state", ignore_errors=True)
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                peak = alone.submit(peak_bytes, spec, work).result()
            found = {"method": f"memory {name}", "moment_bytes": moment_bytes(work)}
            return found | {"peak_bytes": peak}

        return dict(self.cells.get(["memory", name], measure))


def best_of(rates: Sequence[float], measure: Callable[[float], float]) -> float:
    """The rate with the lowest loss; while it is the first or the last one, the next is tried."""
    found = {rate: measure(rate) for rate in rates}
    while len(found) > 1:
        best = min(found, key=lambda rate: found[rate])
        if best == max(found):
            found[4 * best] = measure(4 * best)
        elif best == min(found):
            found[best / 4] = measure(best / 4)
        else:
            return best
    return rates[0]


def write_random(shapes: Mapping[str, int], folder: Path) -> None:
    """A base of these shapes, its weights drawn, with the bundled one's tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True)
    for path in BASE.glob("*token*"):
        shutil.copy(path, folder)
    config = AutoConfig.from_pretrained(BASE)
    config.update(shapes)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def peak_bytes(spec: PruneSpec, work: Path) -> int:
    """How far the resident memory of this process rises while a recovery runs."""
    import_module("peft")  # and what it imports, or the first recovery to do so pays for it
    import_module("transformers.models.llama.modeling_llama")
    Path("/proc/self/clear_refs").write_text("5")  # forget what was the most so far
    before = resident("VmRSS")
    STAGES["recover"](spec, work, quiet)
    return resident("VmHWM") - before


def resident(what: str) -> int:
    """Bytes of this process, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(what))
    return 1024 * int(line.split()[1])


def moment_bytes(work: Path) -> int:
    """Of the optimizer of a recovery, in the end."""
    (course,) = (work / "recover.state").rglob("course.safetensors")
    header = read_header(course, "course")
    return sum(info.bytes for name, info in header.items() if name.startswith("exp_avg"))


def loss(bags: Mapping[Key, Bag], rows: Sequence[Example]) -> float:
    """Nats per completion token of the base with these atoms."""
    model = evaluation.load(BASE)
    with applied(model, deltas_of(bags)):
        return evaluation.completion_loss(model, rows, quiet)


def size_of(tuned: Tuned, bags: Mapping[Key, Bag], seed: int, compact: bool) -> int:
    """Bytes of what has to be stored: nothing if nothing was better than the base."""
    if not bags:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / WEIGHTS
        if compact:
            nola.write_compact(tuned, seed, path)
        else:
            atoms.write(algebra.adapter_of(bags), Path(folder), Geometry.of(BASE), "demo")
        return path.stat().st_size


def prefixes(bags: Mapping[Key, Bag], rows: Sequence[Example], nested: bool) -> Row:
    """Nats with the first atoms alone, and with the best ones of a singular value decomposition.

    Nested ranks were trained at the scale of their number; other atoms stay as they are.
    """
    found = {}
    for rank in RANKS:
        first = {
            key: algebra.scale(
                bag.select(range(min(rank, bag.rank))), bag.rank / rank if nested else 1.0
            )
            for key, bag in bags.items()
        }
        best = {key: algebra.truncate(bag, rank) for key, bag in bags.items()}
        found[str(rank)] = {"prefix": loss(first, rows), "svd": loss(best, rows)}
    return found


def longest(bag: Bag, count: int) -> Bag:
    """The atoms with the largest ‖a‖ ‖b‖."""
    length_R = bag.a_RI.norm(dim=1) * bag.b_OR.norm(dim=0)
    return bag.select(length_R.topk(min(count, bag.rank)).indices)


def quiet(fraction: float, message: str) -> None:
    """No progress."""


def ratio(first: Sequence[float], second: Sequence[float]) -> float:
    """The mean over seeds of first / second."""
    return round(statistics.mean(a / b for a, b in zip(first, second, strict=True)), 4)


class Results:
    """Figures and rows, as far as there was time."""

    def __init__(self, bench: Bench, recovery: Recovery):
        self.bench, self.recovery = bench, recovery
        self.seeds = range(bench.size.seeds)
        self.figures: Row = {}
        self.rows: list[Row] = []
        self.missing: list[str] = []

    def collect(self) -> None:
        """All of it; what does not fit into the minutes is told as missing."""
        self.attempt("forget_ratio", lambda: self.forgetting("forget"))
        self.attempt("remain_ratio", lambda: self.forgetting("remain"))
        for figure, pair in PAIRS.items():
            self.attempt(figure, partial(self.pair, *pair))
        for name in ("lora", "lisa", "owlore"):
            for what in ("moment", "peak"):
                self.attempt(f"{name}_{what}_bytes_vs_full", partial(self.memory, name, what))
        self.attempt("lisa_vs_lora_recovery", partial(self.recovered, "lisa", "lora"))
        self.attempt("owlore_vs_lisa_recovery", partial(self.recovered, "owlore", "lisa"))
        self.attempt("nola_bytes_over_lora_r1", self.nola_bytes)
        self.attempt("dylora_vs_truncated", lambda: self.dylora("prefix"))
        self.attempt("dylora_vs_svd", lambda: self.dylora("svd"))
        self.attempt("ggpo_overfit_vs_lora", self.overfit)
        self.attempt("sora_vs_truncated", self.sora)
        self.attempt("lisa_vs_full_recovery", partial(self.recovered, "lisa", "align"))
        self.attempt("norms_gap_closed", partial(self.gap_closed, "norms"))
        self.attempt(
            "masked_lora_vs_full_recovery", partial(self.recovered, "masked_lora", "align")
        )
        for figure, pair in OTHERS.items():
            self.attempt(figure, partial(self.pair, *pair))
        self.rows = [value for value in self.bench.cells.known.values() if "method" in value]

    def attempt(self, figure: str, measure: Any) -> None:
        if self.bench.size is QUICK and figure not in QUICK_FIGURES:
            return
        try:
            self.figures[figure] = measure()
        except OutOfTime:
            self.missing.append(figure)

    def pair(self, name: str, other: str) -> float:
        first, second = self.bench.all_seeds(name), self.bench.all_seeds(other)
        return ratio([one["test"] for one in first], [one["test"] for one in second])

    def recovered(self, name: str, other: str) -> float:
        first, second = self.recovery.all_seeds(name), self.recovery.all_seeds(other)
        return ratio([one["above"] for one in first], [one["above"] for one in second])

    def gap_closed(self, name: str) -> float:
        """Of the nats between the cut base and the dense one."""
        rows, bare = self.recovery.all_seeds(name), map(self.recovery.bare, self.seeds)
        closed = [
            1 - row["above"] / (base["cut"] - base["dense"])
            for row, base in zip(rows, bare, strict=True)
        ]
        return round(statistics.mean(closed), 4)

    def memory(self, name: str, what: str) -> float:
        first, second = self.recovery.memory(name), self.recovery.memory("align")
        return round(first[f"{what}_bytes"] / second[f"{what}_bytes"], 4)

    def nola_bytes(self) -> float:
        first, second = (self.bench.run(name, RATES[1], 0) for name in ("nola", "lora_r1"))
        return ratio([first["bytes"]], [second["bytes"]])

    def overfit(self) -> float:
        first, second = (self.bench.all_overfit(name) for name in ("ggpo", "lora"))
        return ratio([one["test"] for one in first], [one["test"] for one in second])

    def forgetting(self, what: str) -> float:
        rows = [self.bench.forgetting("gs_lora", seed) for seed in self.seeds]
        for seed in self.seeds:
            self.bench.forgetting("ascent", seed)
        return round(
            statistics.mean(math.exp(row[f"{what}_after"] - row[f"{what}_before"]) for row in rows),
            4,
        )

    def sora(self) -> float:
        first = self.bench.all_seeds("sora")
        return ratio(
            [r["test"] for r in first], [self.bench.truncated(s)["test"] for s in self.seeds]
        )

    def dylora(self, how: str) -> float:
        first, second = (
            [self.bench.prefixes(name, seed)["prefixes"] for seed in self.seeds]
            for name in ("dylora", "lora")
        )
        return ratio(
            [row[str(rank)]["prefix"] for row in first for rank in RANKS],
            [row[str(rank)][how] for row in second for rank in RANKS],
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--quick", action="store_true", help="two steps, for some of the figures")
    parser.add_argument("--work", type=Path, help="where what is measured is kept")
    parser.add_argument("--minutes", type=float, default=600.0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go")
    options = parser.parse_args()
    if options.work:
        options.work.mkdir(parents=True, exist_ok=True)
    size = QUICK if options.quick else FULL
    cells = Cells(options.work and options.work / "cells.jsonl", options.minutes)
    with tempfile.TemporaryDirectory() as temporary:
        recovery = Recovery(options.work or Path(temporary), size, cells)
        results = Results(Bench(options.data, size, cells), recovery)
        results.collect()
    figures = results.figures | {"not_measured": results.missing}
    print(json.dumps(figures, indent=2))
    print(report.write("training", figures, results.rows, options.json))


if __name__ == "__main__":
    main()
