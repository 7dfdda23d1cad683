"""Merging and dropping adapters, beside peft and the papers' baselines.

Usage: python benchmarks/merge.py [--quick] [--rows N] [--data DIRECTORY] [--minutes N]
                                  [--work FILE] [--only PART] [--json FILE]

quality   recovered gain of 2, 3 and 4 bundled adapters merged to rank 8: seed i merges the
          adapters i, i+1, … of the five.  Recovered is (base - merged) / (base - own) in loss on
          the held-out rows of each source, averaged over the sources.
darex     perplexity with 90, 95 and 99 % of ΔW dropped: DARE divides by what stays, DAREx scans.
          Of atoms, 90 % dropped or half of them; `unscaled` divides by nothing.
scale     64 adapters of rank 16 with the shapes of a Llama of 1 B, random weights, in a process of
          its own; ours by svd and peft's svd and ties on one linear of each shape, times how many
          there are.  peft holds every ΔW at once (13 GiB for one FFN linear of 64 adapters), so it
          is timed with 4 and 8 adapters, and a line through both gives 64: its seconds are
          extrapolated, and the rows say from what.
Seconds are processor time of one thread, reading and writing included: other work on the machine
does not count.

Four rows of each eval.jsonl are examples for methods that want some, --rows others measure; with
--data, DIRECTORY/TASK/eval.jsonl adds 100 rows to those that measure.  What was measured is kept in
--work; with --minutes a run stops after that long, and the next one takes it up.  Rows tell their
seeds; figures are of methods that have all of them.  With --only the other parts of the file stay.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import report
import torch
from cells import Cells, OutOfTime
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn

from pruning import evaluation, registry
from pruning.adapters import algebra, atoms
from pruning.adapters.algebra import Bag
from pruning.adapters.atoms import Key
from pruning.adapters.compress.darex import divisor, drop_atoms, drop_entries
from pruning.adapters.compression import applied
from pruning.adapters.merging import merge_all
from pruning.adapters.search import search
from pruning.adapters.source import open_source
from pruning.architectures.llama import LINEARS
from pruning.evaluation import Example
from pruning.geometry import Geometry
from pruning.recipe import Method
from pruning.text import load_tokenizer
from pruning.weights.checkpoint import Checkpoint
from pruning.weights.tensors import block_of

DEMO = Path(__file__).parent.parent / "deploy" / "demo"
NAMES = sorted(path.name for path in (DEMO / "adapters").iterdir())
EXAMPLES, LONGEST, RANK = 4, 256, 8
LLAMA_1B = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
ADAPTERS, SOURCE_RANK = 64, 16
SHAPES = {"q_proj": 32, "k_proj": 32, "up_proj": 32, "down_proj": 16}  # linears of each shape

EVALUATIONS = 20  # of LoraHub's search
Bags = dict[Key, Bag]
Row = dict[str, Any]

PUBLISHED = {"feature": "raw", "centroid": "mean", "fit": 0, "energy": False}
_ALIKE = {"feature": "product", "centroid": "rank_one"}
KNOBS: Mapping[str, dict[str, Any]] = {
    "as published": PUBLISHED,
    "unit features": PUBLISHED | {"feature": "unit"},
    "products": PUBLISHED | {"feature": "product"},
    "products, rank-one": {**_ALIKE, "fit": 0, "energy": False},
    "products, rank-one, energy": {**_ALIKE, "fit": 0, "energy": True},
    "products, rank-one, fit": {**_ALIKE, "fit": 1, "energy": False},
    "products, rank-one, fit, energy": {**_ALIKE, "fit": 1, "energy": True},
    "products, rank-one, fit 2, energy": {**_ALIKE, "fit": 2, "energy": True},
    "products, rank-one, fit 3, energy": {**_ALIKE, "fit": 3, "energy": True},
    "as published, fit, energy": PUBLISHED | {"fit": 1, "energy": True},
    "as published, energy": PUBLISHED | {"energy": True},
}
# ours: name → method, parameters, and the weight of each source as a function of their number
OURS: Mapping[str, tuple[str, dict[str, Any], Callable[[int], float]]] = {
    "lego": ("lego", {"k": RANK}, lambda n: 1),
    **{
        f"lego, {name}": ("lego", {"k": RANK, **knobs}, lambda n: 1)
        for name, knobs in KNOBS.items()
    },
    "svd, w=1.25/n": ("svd", {"rank": RANK}, lambda n: 1.25 / n),
    "linear, w=1/n": ("linear", {}, lambda n: 1 / n),
    "knots": ("knots", {"rank": RANK}, lambda n: 1),
}
Weighings = Mapping[str, Callable[[int], float]]
_ONE: Weighings = {"w=1": lambda n: 1.0}
_MEAN: Weighings = {"w=1/n": lambda n: 1 / n}
_ALL: Weighings = _ONE | {"w=1/√n": lambda n: n**-0.5} | _MEAN
PEFT: Mapping[str, Weighings] = {
    "linear": _ALL,
    "cat": _MEAN,
    "svd": _ALL,
    "magnitude_prune": _MEAN,
    "magnitude_prune_svd": _MEAN,
    "dare_linear": _MEAN,
    "dare_linear_svd": _MEAN,
    "ties": _ONE,
    "ties_svd": _ONE,
    "dare_ties": _ONE,
    "dare_ties_svd": _ONE,
}


def silent(fraction: float, message: str) -> None:
    """No progress."""


class Bench:
    """The bundled base, its adapters from files, and the rows of their tasks."""

    def __init__(self, num_rows: int, data: Path | None):
        self.num_rows = num_rows if data is None else num_rows + 100
        torch.manual_seed(0)
        checkpoint, tokenizer = Checkpoint(DEMO / "base"), load_tokenizer(DEMO / "base")
        self.model = evaluation.load(DEMO / "base")
        self.sources = {
            name: open_source(name, DEMO / "adapters" / name, checkpoint.geometry) for name in NAMES
        }
        self.examples: dict[str, list[Example]] = {}
        self.rows: dict[str, list[Example]] = {}
        for name in NAMES:
            path = DEMO / "adapters" / name / "eval.jsonl"
            bundled = evaluation.rows(tokenizer, path, LONGEST, name)
            self.examples[name] = bundled[:EXAMPLES]
            self.rows[name] = bundled[EXAMPLES : EXAMPLES + num_rows]
            if data is not None:
                more = evaluation.rows(tokenizer, data / name / "eval.jsonl", LONGEST, name)
                self.rows[name] += more[1::2][:100]
        self.base = {name: self.loss(self.model, name) for name in NAMES}
        self.own = {}
        for name in NAMES:
            with applied(self.model, dense(self.bags(name))):
                self.own[name] = self.loss(self.model, name)

    def bags(self, name: str) -> Bags:
        source = self.sources[name]
        return {key: source.bag(key) for key in source.places}

    def loss(self, model: Any, name: str) -> float:
        return evaluation.completion_loss(model, self.rows[name], silent)

    def recovered(self, model: Any, group: Sequence[str]) -> list[float]:
        """Of each task's gain, the part that `model` has."""
        return [
            (self.base[name] - self.loss(model, name)) / (self.base[name] - self.own[name])
            for name in group
        ]

    def merged(
        self, group: Sequence[str], method: str, params: Any, weights: Sequence[float], seed: int
    ) -> Bags:
        function, _, checked = registry.merge(Method(name=method, params=params))
        sources = [self.sources[name] for name in group]
        named = dict(zip(group, weights, strict=True))
        return {key: m.bag for key, m, _ in merge_all(sources, named, function, checked, seed)}

    def outputs(self, name: str) -> Callable[[Mapping[Key, Tensor]], Tensor]:
        """The logits of the base on the examples of a task, with some ΔW added."""

        @torch.inference_mode()
        def probe(deltas: Mapping[Key, Tensor]) -> Tensor:
            with applied(self.model, deltas):
                return torch.cat(
                    [
                        self.model(torch.tensor([ids]), use_cache=False).logits[0]
                        for ids, _ in self.examples[name]
                    ]
                )

        return probe


def dense(bags: Bags) -> dict[Key, Tensor]:
    return {key: bag.delta for key, bag in bags.items()}


def group_of(seed: int, size: int) -> list[str]:
    return [NAMES[(seed + i) % len(NAMES)] for i in range(size)]


def quality(bench: Bench, cells: Cells, seeds: int, sizes: Sequence[int]) -> tuple[Row, list[Row]]:
    """The table of all methods, and the figures about lego and the best of peft at its rank."""
    found: dict[tuple[str, int], dict[int, tuple[int, list[float]]]] = {}
    for methods in (ours, peers, lorahub):
        for seed, size in product(range(seeds), sizes):
            group = group_of(seed, size)
            for name, what, measure in methods(bench, group, seed):
                with suppress(OutOfTime):
                    cell = cells.get(["quality", what, group, seed, bench.num_rows], measure)
                    found.setdefault((name, size), {})[seed] = cell
    rows = [
        {
            "part": "quality",
            "method": name,
            "adapters": size,
            "rank": max(rank for rank, _ in own.values()),
            "recovered": round(statistics.mean(statistics.mean(v) for _, v in own.values()), 3),
            "seeds": {seed: round(statistics.mean(values), 3) for seed, (_, values) in own.items()},
        }
        for (name, size), own in found.items()
    ]
    complete = [row for row in rows if len(row["seeds"]) == seeds]
    return figures_of(complete, sizes), rows


def figures_of(rows: list[Row], sizes: Sequence[int]) -> Row:
    """For each number of adapters lego, and the best of peft's types at its rank."""
    figures: Row = {}
    for size in sizes:
        own = [row for row in rows if row["adapters"] == size]
        equal = [row for row in own if row["method"].startswith("peft") and row["rank"] == RANK]
        best = max(equal, key=lambda row: row["recovered"])
        for name in ("lego", "lego, as published"):
            (row,) = (row for row in own if row["method"] == name)
            label = name.replace(", ", "_").replace(" ", "_")
            figures[f"{label}_recovered_{size}"] = row["recovered"]
        figures[f"best_peer_recovered_{size}"] = best["recovered"]
        figures[f"best_peer_{size}"] = best["method"]
    for name in ("lego", "best_peer"):
        mean = statistics.mean(figures[f"{name}_recovered_{size}"] for size in sizes)
        figures[f"{name}_recovered_mean"] = round(mean, 3)
    return figures


Measured = tuple[str, Any, Callable[[], tuple[int, list[float]]]]  # name, what it is, measure


def ours(bench: Bench, group: list[str], seed: int) -> Iterator[Measured]:
    for name, (method, params, weight) in OURS.items():
        _, _, checked = registry.merge(Method(name=method, params=params))

        def measure(
            method: str = method, params: Any = params, weight: Callable[[int], float] = weight
        ) -> tuple[int, list[float]]:
            bags = bench.merged(group, method, params, [weight(len(group))] * len(group), seed)
            with applied(bench.model, dense(bags)):
                values = bench.recovered(bench.model, group)
            return max(bag.rank for bag in bags.values()), values

        yield name, [method, checked.model_dump(mode="json"), weight(len(group))], measure


def lorahub(bench: Bench, group: list[str], seed: int) -> Iterator[Measured]:
    """Weights found on the examples of all tasks; A's and B's are added up, as published."""

    def combined(weights: Sequence[float]) -> dict[Key, Tensor]:
        keys = bench.sources[group[0]].places
        bags = [{key: loaded(bench, name)[key] for key in keys} for name in group]
        return {
            key: sum_of(weights, [b[key].b_OR for b in bags])
            @ sum_of(weights, [b[key].a_RI for b in bags])
            for key in keys
        }

    def loss(weights: Sequence[float]) -> float:
        with applied(bench.model, combined(weights)):
            losses = [
                evaluation.completion_loss(bench.model, bench.examples[name], silent)
                for name in group
            ]
        return statistics.mean(losses)

    def measure() -> tuple[int, list[float]]:
        weights = search(loss, [0.0] * len(group), evaluations=EVALUATIONS, seed=seed)
        with applied(bench.model, combined(weights)):
            return RANK, bench.recovered(bench.model, group)

    yield "lorahub", ["lorahub", EVALUATIONS], measure


@cache
def loaded(bench: Bench, name: str) -> Bags:
    return bench.bags(name)


def sum_of(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([w * t for w, t in zip(weights, tensors, strict=True)]).sum(dim=0)


def peers(bench: Bench, group: list[str], seed: int) -> Iterator[Measured]:
    """Every combination type of peft's add_weighted_adapter."""

    @cache
    def adapted() -> Any:
        base = evaluation.load(DEMO / "base")
        model = PeftModel.from_pretrained(base, DEMO / "adapters" / group[0], group[0])
        for name in group[1:]:
            model.load_adapter(DEMO / "adapters" / name, name)
        return model

    for kind, weighings in PEFT.items():
        density = {} if kind in ("linear", "cat", "svd") else {"density": 0.5}
        rank = {"svd_rank": RANK, "svd_full_matrices": False} if "svd" in kind else {}
        for label, weight in weighings.items():

            def measure(
                kind: str = kind,
                weight: Callable[[int], float] = weight,
                options: Row = density | rank,
            ) -> tuple[int, list[float]]:
                model = adapted()
                torch.manual_seed(seed)
                model.add_weighted_adapter(
                    group, [weight(len(group))] * len(group), "merged", kind, **options
                )
                model.set_adapter("merged")
                model.eval()
                found = model.peft_config["merged"].r, bench.recovered(model, group)
                model.delete_adapter("merged")
                return found

            yield f"peft {kind}, {label}", ["peft", kind, label], measure


def darex(bench: Bench, cells: Cells, seeds: int, drops: Sequence[float]) -> tuple[Row, list[Row]]:
    """Entries and atoms dropped at some rates; the loss on the adapter's own rows."""
    rows = []
    for seed in range(seeds):
        for unit, drop in (*(("entry", drop) for drop in drops), ("atom", 0.9), ("atom", 0.5)):
            what = ["darex", NAMES[seed % len(NAMES)], seed, unit, drop, bench.num_rows]
            rows.append(cells.get(what, partial(dropped, bench, seed, unit, drop)))

    def ratio(unit: str, drop: float, than: str) -> float:
        chosen = [row for row in rows if (row["unit"], row["drop"]) == (unit, drop)]
        logs = [math.log(row["perplexity_darex"] / row[f"perplexity_{than}"]) for row in chosen]
        return round(math.exp(statistics.mean(logs)), 3)

    figures = {f"darex_vs_dare_{drop * 100:.0f}": ratio("entry", drop, "dare") for drop in drops}
    for drop in (0.5, 0.9):
        for than in ("unscaled", "dare"):
            figures[f"structural_vs_{than}_{drop * 100:.0f}"] = ratio("atom", drop, than)
    return figures, rows


def dropped(bench: Bench, seed: int, unit: str, drop: float) -> Row:
    """One adapter with one part of it dropped, rescaled in three ways."""
    name = NAMES[seed % len(NAMES)]
    bags, probe = bench.bags(name), bench.outputs(name)
    entries = unit == "entry"
    left = drop_entries(bags, drop, seed) if entries else dense(dict(drop_atoms(bags, drop, seed)))
    q = divisor(dense(bags), left, 1 - drop, probe)
    perplexity = {"base": math.exp(bench.base[name]), "whole": math.exp(bench.own[name])}
    for label, by in (("unscaled", 1.0), ("dare", 1 - drop), ("darex", q)):
        with applied(bench.model, {key: delta / by for key, delta in left.items()}):
            perplexity[label] = math.exp(bench.loss(bench.model, name))
    found = {f"perplexity_{label}": round(value, 3) for label, value in perplexity.items()}
    what = {"part": "darex", "adapter": name, "seed": seed, "unit": unit, "drop": drop}
    return what | {"q": round(q, 4)} | found


def scale(cells: Cells, count: int, layers: int, shapes: Sequence[str]) -> tuple[Row, list[Row]]:
    """Our merge of many adapters in a process of its own; the others on single linears."""
    config = LLAMA_1B | {"num_hidden_layers": layers}
    geometry = Geometry.from_config(config)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for index in range(count):
            write_random(folder / f"adapter-{index:02}", geometry, index)
        rows = [cells.get(["scale", "lego", count, layers], partial(lego_run, folder, config))]
        for method in ("svd", "peft svd", "peft ties"):
            seconds = {}
            for linear in shapes:
                timer = partial(linear_seconds, method, folder, geometry, linear, count)
                seconds[linear] = cells.get(["scale", method, linear, count, layers], timer)
            whole = sum(seconds[linear] * SHAPES[linear] * layers / 16 for linear in shapes)
            rows.append(
                {
                    "part": "scale",
                    "adapters": count,
                    "method": method,
                    "seconds": round(whole, 1),
                    "seconds_by_linear": {name: round(value, 2) for name, value in seconds.items()},
                    "extrapolated": "from one linear of each shape to all"
                    + (", from 4 and 8 adapters" if method.startswith("peft") else ""),
                }
            )
    found = {row["method"]: row["seconds"] for row in rows}
    return {
        f"merge{count}_seconds": found["lego"],
        f"merge{count}_rss_gib": rows[0]["rss_gib"],
        f"svd{count}_seconds": found["svd"],
        f"peft_svd{count}_seconds": found["peft svd"],
        f"peft_ties{count}_seconds": found["peft ties"],
    }, rows


def lego_run(folder: Path, config: dict[str, Any]) -> Row:
    """What a process takes that merges every adapter of a folder with lego."""
    command = [sys.executable, __file__, "--merge", str(folder), json.dumps(config)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    count = len(list(folder.glob("adapter-*")))
    return {"part": "scale", "adapters": count, **json.loads(run.stdout)}


def linear_seconds(method: str, folder: Path, geometry: Geometry, linear: str, count: int) -> float:
    """How long a method takes, or would take, for one linear of all adapters."""
    if method == "svd":
        return svd_seconds(folder, geometry, linear)
    return peft_seconds(method.removeprefix("peft "), geometry, linear, count)


def write_random(directory: Path, geometry: Geometry, seed: int) -> None:
    """A PEFT directory of random atoms in float16."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(len(geometry.layers)):
        for linear in LINEARS:
            outputs, inputs = geometry.linear_shape(layer, linear) or (0, 0)
            name = f"base_model.model.model.layers.{layer}.{block_of(linear)}.{linear}"
            for side, shape in (("A", (SOURCE_RANK, inputs)), ("B", (outputs, SOURCE_RANK))):
                values = torch.randn(shape, generator=generator) / shape[1] ** 0.5
                tensors[f"{name}.lora_{side}.weight"] = values.half()
    directory.mkdir()
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": SOURCE_RANK,
        "lora_alpha": SOURCE_RANK,
        "target_modules": list(LINEARS),
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))


def merge_folder(folder: Path, config: dict[str, Any]) -> None:
    """Merge every adapter of a folder with lego and write the result; print what it took."""
    geometry = Geometry.from_config(config)
    sources = [open_source(path.name, path, geometry) for path in sorted(folder.glob("adapter-*"))]
    function, _, params = registry.merge(Method(name="lego"))
    weights = {source.name: 1.0 for source in sources}
    bags = {key: m.bag for key, m, _ in merge_all(sources, weights, function, params, 0)}
    adapter = algebra.adapter_of(bags, sources[0].dtype)
    atoms.write(adapter, folder / "merged", geometry, "base")
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0])
    found = {"seconds": round(time.process_time(), 1), "rss_gib": round(peak / 2**20, 2)}
    print(json.dumps({"method": "lego", **found}))


def svd_seconds(folder: Path, geometry: Geometry, linear: str) -> float:
    """How long our svd takes for one linear of all adapters, reading included."""
    paths = sorted(folder.glob("adapter-*"))
    sources = [open_source(path.name, path, geometry) for path in paths]
    started = time.process_time()
    pool = algebra.cat([source.bag((0, linear)) for source in sources], [1.0] * len(sources))
    algebra.truncate(pool, SOURCE_RANK)
    return time.process_time() - started


def peft_seconds(kind: str, geometry: Geometry, linear: str, count: int) -> float:
    """How long peft would take for one linear of `count` adapters, from runs with 4 and 8."""
    outputs, inputs = geometry.linear_shape(0, linear) or (0, 0)
    model = nn.Sequential()
    model.add_module(linear, nn.Linear(inputs, outputs, bias=False))
    lora = LoraConfig(r=SOURCE_RANK, lora_alpha=SOURCE_RANK, target_modules=[linear])
    adapted = get_peft_model(model, lora, adapter_name="a0")
    for index in range(1, 8):
        adapted.add_adapter(f"a{index}", lora)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    options: Row = {"svd_rank": SOURCE_RANK, "svd_full_matrices": False}
    options = {"density": 0.5} if kind == "ties" else options
    seconds = {}
    for some in (4, 8):
        names = [f"a{index}" for index in range(some)]
        started = time.process_time()
        adapted.base_model.add_weighted_adapter(names, [1.0] * some, f"m{some}", kind, **options)
        seconds[some] = time.process_time() - started
    each = max(0.0, (seconds[8] - seconds[4]) / 4)
    return seconds[8] + each * (count - 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", type=Path, help="folder with TASK/eval.jsonl")
    parser.add_argument("--rows", type=int, default=46, help="of each eval.jsonl, to measure")
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--work", type=Path, help="a file that keeps what was measured")
    parser.add_argument("--only", choices=("quality", "darex", "scale"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--merge", nargs=2, help=argparse.SUPPRESS)  # what `scale` runs
    a = parser.parse_args()
    if a.merge:
        merge_folder(Path(a.merge[0]), json.loads(a.merge[1]))
        return
    figures, rows = others(a)
    for name, part in parts_of(a).items():
        if a.only not in (None, name):
            continue
        try:
            found, own = part()
        except OutOfTime:
            print(f"{name}: to be taken up again", file=sys.stderr)
            continue
        figures |= found
        rows += own
        print(report.write("merge", figures, rows, a.json))  # what is done is kept
    print(json.dumps(figures, indent=2))


def others(a: argparse.Namespace) -> tuple[Row, list[Row]]:
    """With --only, what the file already tells of the other parts."""
    path = a.json or report.RESULTS / "merge.json"
    if a.only is None or not path.exists():
        return {}, []
    before = json.loads(path.read_text())
    return before["figures"], [row for row in before["rows"] if row["part"] != a.only]


def parts_of(a: argparse.Namespace) -> dict[str, Callable[[], tuple[Row, list[Row]]]]:
    cells = Cells(a.work, a.minutes)
    bench = cache(lambda: Bench(3 if a.quick else a.rows, a.data))
    if a.quick:
        return {
            "quality": lambda: quality(bench(), cells, 1, (2,)),
            "darex": lambda: darex(bench(), cells, 1, (0.99,)),
            "scale": lambda: scale(cells, 8, 1, ["k_proj"]),
        }
    return {
        "quality": lambda: quality(bench(), cells, 5, (2, 3, 4)),
        "darex": lambda: darex(bench(), cells, 5, (0.9, 0.95, 0.99)),
        "scale": lambda: scale(cells, ADAPTERS, 16, list(SHAPES)),
    }


if __name__ == "__main__":
    main()
