"""Quality of pruning: nats per token over the dense base, for all methods side by side.

Usage: python benchmarks/quality.py [--quick] [--minutes N] [--work DIRECTORY] [--workers N]
                                    [--json FILE]

The bundled base, whose query heads share KV heads (gqa), and a copy in which every query head has
its own (mha: each KV head repeated, the same function) lose 25 % and 50 % of their body.  Every
method sees the same calibration text and is measured on the same held-out text.  A figure A_vs_B
is our excess loss over B's, below 1 where ours is the lower, of means over the seeds of the
calibration sample:

  flap       the lower of fluctuation with bias as published (standardized) and uniform
             (flap_published: the former alone)
  llmpruner  the lower of taylor uniform and global
  best       the lowest of all methods as published, those that refit included
  recovered  ours as_given and distill against taylor and lora, the same tokens, each with the
             learning rate that does best on text held out from training (of a quarter of the
             tokens, on the 50 % cut)

Beside the text that all are given, ours is refit to more that the dense base writes on from it
(self-calibration); as_given is ours without.  In same_text the others that take three seeds are
given what it wrote, too: they score and refit by all that ours is refit to.

The methods that decide a figure take three seeds; every criterion with every allocator takes one,
without recovery and with `distill`, the published methods with `lora` too, and what each step of
ours brings without recovery.  Losses are those of 64 windows, but cuts of 25 % that decide a figure
are measured on the whole held-out text, eight times as much, since they differ by less than a part
of it can tell.  So is what cuts from 5 % to 60 % lose, `monotone`: three seeds to 10 %, then one;
"evolved" is ours by evolution alone.  Its error is the standard error, over 16 parts of the text,
of the difference between that and uniform.
carry_gap_closed is what carry.py found.  Rows go to DIRECTORY/rows.jsonl as they come; a run with
the same DIRECTORY goes on from there, and begins nothing more after N minutes.  Workers are
processes, of one thread each if there are several; a row names the GPU that measured it, if one
did.  --quick: three methods, one seed, one target and little text.
"""

import argparse
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import sha256
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import report
import torch
from safetensors.torch import load_file, save_file

from pruning import evaluation
from pruning.calibration import collect_into
from pruning.geometry import Geometry
from pruning.jobs.outputs import slim_base
from pruning.methods import resolve
from pruning.methods.entry import Statistic
from pruning.pipeline import SEQUENCES, STAGES, calibrate
from pruning.recipe import MOST_SEQUENCES, Method, PruneSpec, Recipe, Text
from pruning.self_calibration import written
from pruning.text import load_tokenizer
from pruning.training.data import training_split
from pruning.training.losses import next_token
from pruning.training.trainer import held_out_loss
from pruning.weights.checkpoint import Checkpoint

DEMO = Path(__file__).resolve().parent.parent / "deploy" / "demo"
MODELS = ("gqa", "mha")
SEEDS = (0, 1, 2)
TARGETS = (0.25, 0.5)  # fractions of the body that leave
SWEEP = (0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6)
SMALL = SWEEP[:2]
PARTS = 16  # of the held-out text, one after the other
TOKENS = 300_000  # of recovery
OWN_SEQUENCES = 768  # that the dense base writes, beside the 128 given
CARRIED = ("25", "50", "50steps")
RATES = {"distill": (5e-4, 1e-3), "lora": (1e-2, 2e-2)}

Row = dict[str, Any]
Figures = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """A way to prune."""

    name: str
    criterion: Method
    allocator: Method = Method(name="uniform")
    bias: bool = False
    refit: Method | None = None
    longer: bool = False  # calibrated on what the dense base wrote for ours, too

    @property
    def cut(self) -> str:
        """The name of its cut, which others have that differ in their refit alone."""
        parts = self.criterion, self.allocator, self.bias, self.longer
        return sha256(repr(parts).encode()).hexdigest()[:16]

    @property
    def needs(self) -> frozenset[Statistic]:
        means = frozenset({"input_moments"} if self.bias else ())
        methods = resolve("criterion", self.criterion), resolve("allocator", self.allocator)
        return means.union(*(entry.needs | params.needs for entry, params in methods))


def method(name: str, **params: Any) -> Method:
    return Method(name=name, params=params)


def plain(criterion: str, allocator: str = "uniform", refit: bool = False) -> Contender:
    """Both with their defaults."""
    name = f"{criterion} {allocator}{' + closed_form' if refit else ''}"
    repair = method("closed_form") if refit else None
    return Contender(name, method(criterion), method(allocator), refit=repair)


def flap(allocator: str) -> Contender:
    return Contender(
        f"fluctuation {allocator} + bias", method("fluctuation"), method(allocator), bias=True
    )


def ours(name: str, self_calibration: int = 0, **search: Any) -> Contender:
    return Contender(
        name,
        method("obs", tokens="guided"),
        method("search", refit=True, fitness="divergence", **search),
        refit=method("closed_form", goal="stream", writers=True, self_calibration=self_calibration),
    )


def longer(contender: Contender) -> Contender:
    """Nobody has published these."""
    return replace(contender, name=f"{contender.name}, text of ours", longer=True)


OURS = ours("ours", OWN_SEQUENCES, rounds=2, generations=6, sequences=32)
GIVEN = ours("ours, text as given", rounds=2, generations=6, sequences=32)
EVOLVED = ours("evolved", rounds=0, generations=12, sequences=16)  # GIVEN, by evolution alone
FLAP = (flap("standardized"), flap("uniform"))
LLM_PRUNER = (plain("taylor"), plain("taylor", "global"))
ZIPLM, FASP = plain("obs", refit=True), plain("wanda", refit=True)
PUBLISHED = (
    *FLAP[:1],
    *LLM_PRUNER[:1],
    ZIPLM,
    FASP,
    plain("wanda"),
    plain("minitron"),
    plain("cfsp", "sigmoid"),
    plain("taylor", "linear"),
    plain("entropy"),
    plain("ecoflap", "global"),
    plain("relevance", "global"),
    plain("magnitude", "global"),
)
DECIDING = (OURS, GIVEN, ZIPLM, FASP, *FLAP, *LLM_PRUNER)
STEPS = (
    EVOLVED,
    Contender("ours, widths uniform", GIVEN.criterion, refit=GIVEN.refit),
    Contender("evolved, tokens alike", method("obs"), EVOLVED.allocator, refit=GIVEN.refit),
    Contender(
        "evolved, readers alone",
        GIVEN.criterion,
        EVOLVED.allocator,
        refit=method("closed_form", goal="stream"),
    ),
    Contender(
        "evolved, goal layer",
        GIVEN.criterion,
        EVOLVED.allocator,
        refit=method("closed_form"),
    ),
)
PEERS = {
    "flap": FLAP,
    "flap_published": FLAP[:1],
    "llmpruner": LLM_PRUNER,
    "best": PUBLISHED,
}
LONGER = tuple(map(longer, DECIDING[2:]))
SAME_TEXT = {
    peer: tuple(longer(contender) for contender in contenders if contender in DECIDING)
    for peer, contenders in PEERS.items()
}
SIDES = (("oneshot", OURS, PEERS), ("same_text", OURS, SAME_TEXT), ("as_given", GIVEN, PEERS))
UNTRAINED = (OURS, *STEPS)
CRITERIA = (
    "random magnitude taylor fluctuation wanda minitron cfsp entropy gblm ecoflap relevance "
    "lora_guided pq obs"
).split()
ALLOCATORS = (
    method("uniform"),
    method("global"),
    method("erk"),
    method("linear"),
    method("outlier"),
    method("pq_index"),
    method("proportional", most=0.9),
    method("sigmoid"),
    method("standardized"),
    method("rate_distortion", levels=4, sequences=4),
    method("search", rounds=0, generations=8, offspring=8, sequences=12),
)
TABLE = (
    *PUBLISHED,
    *STEPS,
    *(plain(name, "uniform", refit=True) for name in ("random", "magnitude", "taylor")),
    *(
        Contender(f"{criterion} {allocator.name}", method(criterion), allocator)
        for allocator, criterion in product(ALLOCATORS, CRITERIA)
    ),
)
ALL = tuple({contender.name: contender for contender in (*DECIDING, *TABLE)}.values())
COMPARED = (EVOLVED, ZIPLM, plain("random", refit=True))
QUICK = (
    ours("ours", 8, rounds=1, levels=2, generations=1, offspring=2, sequences=4),
    FLAP[1],
    LLM_PRUNER[0],
)


@dataclass(frozen=True)
class Bench:
    """The bases, the texts and what a run has found so far, below `work`."""

    work: Path
    sequences: int = 128
    windows: int = 64

    @cached_property
    def text(self) -> Text:
        return Text(file="text/calibration.txt", sequences=self.sequences)

    @cached_property
    def held_out(self) -> evaluation.Windows:
        return self._held_out(self.windows)

    def _held_out(self, windows: int) -> evaluation.Windows:
        text = Text(file="text/evaluation.txt", sequences=windows)
        return evaluation.windows(load_tokenizer(DEMO / "base"), DEMO / text.file, text)

    @cached_property
    def parts(self) -> list[evaluation.Windows]:
        """The whole held-out text."""
        whole = self._held_out(MOST_SEQUENCES)
        pairs = (tensor.tensor_split(PARTS) for tensor in (whole.ids_WT, whole.labels_WT))
        return [evaluation.Windows(*pair, whole.num_words) for pair in zip(*pairs, strict=True)]

    def base(self, model: str) -> Path:
        if model == "gqa":
            return DEMO / "base"
        copy = self.work / model / "base"
        if not copy.exists():
            expand(DEMO / "base", copy)
        return copy

    def nats(self, model: Path, *texts: evaluation.Windows) -> list[float]:
        """Mean negative log likelihood per token of each text."""
        loaded = evaluation.load(model)
        return [math.log(evaluation.perplexity(loaded, text, quiet).token) for text in texts]

    @cached_property
    def dense(self) -> float:
        return self.nats(DEMO / "base", self.held_out)[0]

    @cached_property
    def dense_parts(self) -> list[float]:
        return self.nats(DEMO / "base", *self.parts)

    def excess_of_parts(self, model: Path) -> list[float]:
        pairs = zip(self.nats(model, *self.parts), self.dense_parts, strict=True)
        return [round(slim - dense, 5) for slim, dense in pairs]

    @property
    def rows(self) -> list[Row]:
        """What this and earlier runs have found."""
        path = self.work / "rows.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def spec(
        self, model: str, contender: Contender, target: float, seed: int, *recovery: Method
    ) -> PruneSpec:
        recipe = Recipe(
            name="quality",
            base="demo",
            adapters=(),
            target=target,
            criterion=contender.criterion,
            allocator=contender.allocator,
            bias_compensation=contender.bias,
            recovery=(*([contender.refit] if contender.refit else []), *recovery),
            calibration=self.text,
            evaluation=self.text,
            seed=seed,
        )
        text = DEMO / self.text.file
        return PruneSpec(
            recipe=recipe, base=self.base(model), adapters={}, calibration=text, evaluation=text
        )

    def calibrated(
        self, model: str, seed: int, needs: frozenset[Statistic], longer: bool = False
    ) -> Path:
        """A work directory with statistics in it, for all that need no others."""
        name = f"{seed}-{'-'.join(sorted(needs)) or 'nothing'}{'-longer' if longer else ''}"
        work = self.work / model / name
        if not (work / "calibrate" / "done").exists():
            work.mkdir(parents=True, exist_ok=True)
            asked = self.spec(model, plain("magnitude"), TARGETS[0], seed)
            calibrate(asked, work, quiet, also=frozenset() if longer else needs)
            if longer:
                self._lengthen(asked, work, needs)
            (work / "calibrate" / "done").touch()
        return work

    def _lengthen(self, asked: PruneSpec, work: Path, needs: frozenset[Statistic]) -> None:
        """Add what the dense base writes for ours to the calibration text; collect from both."""
        out, state, checkpoint = work / "calibrate", work / "longer", Checkpoint(asked.base)
        ids_ST = load_file(out / SEQUENCES)["ids"]
        shutil.rmtree(state, ignore_errors=True)
        state.mkdir()
        own_NT = written(asked.base, ids_ST, OWN_SEQUENCES, asked.recipe.seed, state, quiet)
        ids_ST = torch.cat([ids_ST, own_NT])
        save_file({"ids": ids_ST}, out / SEQUENCES)
        statistics = out / "statistics.safetensors"
        statistics.unlink()
        collect_into(statistics, checkpoint, ids_ST, needs, 0, state, quiet)

    def cut(self, asked: PruneSpec, contender: Contender, calibrated: Path) -> Path:
        """A work directory of a contender and a target, with the slim base as it was cut."""
        work = calibrated / f"{contender.cut}-{asked.recipe.target}"
        if not (work / "done").exists():
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            (work / "calibrate").symlink_to(calibrated / "calibrate")
            for stage in ("plan", "slice"):
                STAGES[stage](asked, work, quiet)
            (work / "done").touch()
        return work


@dataclass(frozen=True)
class Job:
    """One row to come."""

    model: str
    contender: Contender
    target: float
    seed: int
    recovery: str = "none"
    rate: float | None = None  # to be tried on a quarter of the tokens; none: the best one
    whole: bool = False  # measured on every part of the held-out text

    @property
    def key(self) -> Row:
        return {
            "model": self.model,
            "method": self.contender.name,
            "target": self.target,
            "seed": self.seed,
            "recovery": self.recovery,
            "rate": self.rate,
            "whole": self.whole,
        }

    @property
    def group(self) -> tuple[str, str, float, int]:
        """Jobs of one group share a cut."""
        return self.model, self.contender.cut, self.target, self.seed

    @property
    def waits(self) -> bool:
        """For the rows that find the best learning rate."""
        return self.recovery != "none" and self.rate is None

    def run(self, bench: Bench, needs: frozenset[Statistic]) -> Row:
        started, training = time.monotonic(), self._training(bench.rows)
        asked = bench.spec(self.model, self.contender, self.target, self.seed, *training)
        calibrated = bench.calibrated(self.model, self.seed, needs, self.contender.longer)
        work = bench.cut(asked, self.contender, calibrated)
        STAGES["recover"](asked, work, quiet)
        shutil.rmtree(work / "recover.state", ignore_errors=True)  # gigabytes
        slim = slim_base(asked, work)
        found: Row = {"kept": round(kept(slim, bench.base(self.model)), 4)}
        if self.whole:
            found["parts"] = bench.excess_of_parts(slim)
        elif self.rate is None:
            found["excess"] = round(bench.nats(slim, bench.held_out)[0] - bench.dense, 4)
        else:
            found["held_out"] = round(
                held_out_loss(next_token(evaluation.load(slim)), training_split(asked, 0.05)), 4
            )
        widths = [
            (layer.num_kv_heads, layer.intermediate_size) for layer in Geometry.of(slim).layers
        ]
        if torch.cuda.is_available():
            found["gpu"] = torch.cuda.get_device_name()
        seconds = round(time.monotonic() - started, 1)
        return {**self.key, **found, "seconds": seconds, "widths": widths}

    def _training(self, rows: Sequence[Row]) -> list[Method]:
        if self.recovery == "none":
            return []
        rate, tokens = self.rate, TOKENS // 4
        if rate is None:
            tried = [r for r in rows if r["recovery"] == self.recovery and r["rate"]]
            rate, tokens = min(tried, key=lambda row: row["held_out"])["rate"], TOKENS
        return [method(self.recovery, tokens=tokens, learning_rate=rate, batch=4, checks=5)]


# jobs that share a cut, each with the statistics to collect
Group = list[tuple[Job, frozenset[Statistic]]]


def jobs(quick: bool) -> Iterator[tuple[Job, frozenset[Statistic]]]:
    """What is to be measured, what decides figures first, with the statistics to collect."""
    if quick:
        yield from sharing(QUICK, (Job("gqa", c, TARGETS[-1], 0) for c in QUICK))
        return
    for model, seed in product(MODELS, SEEDS):
        sharers = ALL if (model, seed) == ("gqa", 0) else DECIDING
        yield from sharing(sharers, deciding(model, seed, DECIDING))
        yield from sharing(LONGER, deciding(model, seed, LONGER))
        yield from sharing(sharers, recovered(model, seed))
    for seed in SEEDS:
        yield from sharing(ALL if seed == 0 else DECIDING, swept(seed))
    yield from sharing(ALL, of_first_seed())


def sharing(
    contenders: Iterable[Contender], group: Iterable[Job]
) -> Iterator[tuple[Job, frozenset[Statistic]]]:
    """Each job with what all these contenders need: they share one calibration."""
    needs = frozenset[Statistic]().union(*(contender.needs for contender in contenders))
    return ((job, needs) for job in group)


def deciding(model: str, seed: int, contenders: Iterable[Contender]) -> Iterator[Job]:
    for target, contender in product(TARGETS, contenders):
        yield Job(model, contender, target, seed, whole=target == TARGETS[0])


def recovered(model: str, seed: int) -> Iterator[Job]:
    """The learning rate is chosen on the first seed of the bundled base."""
    pairs = (("distill", GIVEN), ("lora", LLM_PRUNER[0]))
    for name, contender in pairs if (model, seed) == ("gqa", 0) else ():
        for rate in RATES[name]:
            yield Job(model, contender, TARGETS[-1], seed, name, rate)
    for target, (name, contender) in product(reversed(TARGETS), pairs):
        yield Job(model, contender, target, seed, name)


def of_first_seed() -> Iterator[Job]:
    """The rest of the table."""
    for contender, target in product(ALL, TARGETS):
        yield Job("gqa", contender, target, 0)
        for recovery in RATES if contender in PUBLISHED else ("distill",):
            if contender not in UNTRAINED:
                yield Job("gqa", contender, target, 0, recovery)


def swept(seed: int) -> Iterator[Job]:
    """What `monotone` compares."""
    targets, contenders = (SWEEP, COMPARED) if seed == 0 else (SMALL, COMPARED[:2])
    for target, contender in product(targets, contenders):
        yield Job("gqa", contender, target, seed, whole=True)


def expand(source: Path, copy: Path) -> None:
    """The same function with a KV head of its own for each query head."""
    shutil.copytree(source, copy)
    config = json.loads((source / "config.json").read_text())
    geometry = Geometry.of(source)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    (copy / "config.json").write_text(json.dumps({**config, "num_key_value_heads": heads}))
    tensors = load_file(source / "model.safetensors")
    for name, tensor in tensors.items():
        if "k_proj" in name or "v_proj" in name:
            shared = tensor.view(kv_heads, geometry.head_dim, -1)
            own = shared.repeat_interleave(heads // kv_heads, dim=0)
            tensors[name] = own.reshape(-1, tensor.shape[1]).contiguous()
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})


def kept(slim: Path, dense: Path) -> float:
    """Fraction of the body that a slim base still has."""
    return Geometry.of(slim).body_parameters / Geometry.of(dense).body_parameters


def figures(rows: Sequence[Row], dense: float) -> Figures:
    """Ratios of mean excess losses; NaN is left out."""
    found: Figures = {"dense_nats": round(dense, 4)}
    for model, target in product(MODELS, TARGETS):
        suffix, percent = "" if model == "gqa" else f"_{model}", round(100 * target)
        for kind, contender, peers in SIDES:
            mine = excess(rows, model, contender, target)
            for peer, contenders in peers.items():
                others = [excess(rows, model, other, target) for other in contenders]
                known = [value for value in others if not math.isnan(value)]
                if known and not math.isnan(mine):
                    name = f"{kind}{percent}_vs_{peer}{suffix}"
                    found[name] = round(mine / min(known), 3)
        trained = [
            excess(rows, model, contender, target, recovery)
            for contender, recovery in ((GIVEN, "distill"), (LLM_PRUNER[0], "lora"))
        ]
        if not any(map(math.isnan, trained)):
            name = f"recovered{percent}_vs_llmpruner_lora{suffix}"
            found[name] = round(trained[0] / trained[1], 3)
    return found | monotone(rows) | carried()


def monotone(rows: Sequence[Row]) -> Figures:
    """By target the means over the seeds of all three; and where the first is not lowest."""
    table = {}
    for target in SWEEP:
        parts = [whole(rows, contender, target) for contender in COMPARED]
        if all(parts):
            found = dict(zip(("evolved", "uniform", "random"), map(mean, parts), strict=True))
            apart = [mine - other for mine, other in zip(*parts[:2], strict=True)]
            found["error"] = stdev(apart) / math.sqrt(PARTS)
            table[f"{target:g}"] = {name: round(value, 5) for name, value in found.items()}
    worse = [
        t for t, found in table.items() if found["evolved"] > min(found["uniform"], found["random"])
    ]
    return {"monotone": table, "monotone_worse_at": worse}


def carried() -> Figures:
    """The share of the gap between slices and dense adapters that carry.py found to be closed."""
    known = json.loads((report.RESULTS / "carry.json").read_text())["figures"]
    return {f"carry_gap_closed_{what}": known[f"carry_gap_closed_{what}"] for what in CARRIED}


def whole(rows: Sequence[Row], contender: Contender, target: float) -> list[float]:
    """What a contender loses on each part of the text, mean over the seeds that were swept."""
    wanted = asdict(Wanted(MODELS[0], contender.name, target, "none")).items()
    seeds = SEEDS if target in SMALL else SEEDS[:1]
    of_seeds = [row for row in rows if wanted <= row.items() and row["seed"] in seeds]
    found = [row["parts"] for row in of_seeds if "parts" in row]
    return [mean(values) for values in zip(*found, strict=True)]


def excess(
    rows: Sequence[Row], model: str, contender: Contender, target: float, recovery: str = "none"
) -> float:
    """Mean over the seeds that were measured; NaN for none.

    Of cuts of 25 % on the whole text, for the contenders that it was measured for.
    """
    wanted = asdict(Wanted(model, contender.name, target, recovery)).items()
    found = [row for row in rows if wanted <= row.items()]
    values = [mean(row["parts"]) for row in found if "parts" in row and target == TARGETS[0]]
    values = values or [row["excess"] for row in found if "excess" in row]
    return mean(values) if values else math.nan


@dataclass(frozen=True)
class Wanted:
    """What a row must say."""

    model: str
    method: str
    target: float
    recovery: str


def measured(bench: Bench, quick: bool, minutes: float, workers: int) -> list[Row]:
    """All rows, those of earlier runs first."""
    end, known = time.monotonic() + 60 * minutes, bench.rows
    groups: dict[tuple[Any, ...], Group] = {}
    for job, needs in jobs(quick):
        group = groups.setdefault(job.group, [])
        if (job, needs) not in group and not any(job.key.items() <= row.items() for row in known):
            group.append((job, needs))
    shared = {
        (job.model, job.seed, needs, job.contender.longer)
        for group in groups.values()
        for job, needs in group
    }
    for model in {model for model, *_ in shared}:
        bench.base(model)  # written once, before the workers look for it
    each(bench.calibrated, shared, workers)
    for wave in (False, True):
        parts = [[pair for pair in group if pair[0].waits == wave] for group in groups.values()]
        each(run, [(bench, part, end) for part in parts if part], workers)
    return bench.rows


def run(bench: Bench, group: Group, end: float) -> None:
    """Add the rows of a group to the file, in one write each."""
    for job, needs in group:
        if time.monotonic() < end:
            line = json.dumps(job.run(bench, needs)) + "\n"
            with (bench.work / "rows.jsonl").open("a") as file:
                file.write(line)
            print(line, end="", flush=True)


def each(do: Callable[..., object], calls: Iterable[tuple[Any, ...]], workers: int) -> None:
    """Do it with the arguments of each call, in `workers` processes."""
    if workers == 1:
        for arguments in calls:
            do(*arguments)
        return
    start = torch.set_num_threads
    with ProcessPoolExecutor(workers, get_context("spawn"), start, (1,)) as pool:
        for future in as_completed([pool.submit(do, *arguments) for arguments in calls]):
            future.result()


def quiet(fraction: float, message: str) -> None:
    """Progress that nobody hears."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        bench = Bench(work, 16, 16) if options.quick else Bench(work)
        rows = measured(bench, options.quick, options.minutes, options.workers)
        print(report.write("quality", figures(rows, bench.dense), rows, options.json))


if __name__ == "__main__":
    main()
