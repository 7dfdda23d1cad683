"""Merging and compressing adapters, beside peft and the papers' baselines.

Usage: python benchmarks/merge.py [--quick] [--rows N] [--data DIRECTORY] [--minutes N]
                                  [--only PART] [--json FILE]

quality   recovered gain of 2, 3 and 4 bundled adapters merged to rank 8: seed i merges the
          adapters i, i+1, … of the five.  Recovered is (base - merged) / (base - own) in loss on
          the held-out rows of each source, averaged over the sources.
darex     perplexity with 90, 95 and 99 % of ΔW dropped: DARE divides by what stays, DAREx scans.
scale     64 adapters of rank 16 with the shapes of a Llama of 1 B, random weights, in a process of
          its own; ours by svd and peft's svd and ties on one linear of each shape, times how many
          there are.  peft holds every ΔW at once (13 GiB for one FFN linear of 64 adapters), so it
          is timed with 4 and 8 adapters, and a line through both gives 64.
Seconds are processor time of one thread, reading and writing included: other work on the machine
does not count.

Four rows of each eval.jsonl are examples for methods that want some, --rows others measure; with
--data, DIRECTORY/TASK/eval.jsonl adds 100 rows to those that measure.  With --minutes, quality
begins no new seed after that long.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import report
import torch
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

# ours: name → method, parameters, and the weight of each source as a function of their number
OURS: Mapping[str, tuple[str, dict[str, Any], Callable[[int], float]]] = {
    "lego": ("lego", {"k": RANK}, lambda n: 1),
    "lego, raw features": ("lego", {"k": RANK, "feature": "raw"}, lambda n: 1),
    "lego, balanced gauge": ("lego", {"k": RANK, "gauge": "balanced"}, lambda n: 1),
    "lego, svd gauge": ("lego", {"k": RANK, "gauge": "svd", "sign": "canonical"}, lambda n: 1),
    "lego, no reweighting": (
        "lego",
        {"k": RANK, "parameter_reweighting": False, "output_reweighting": False},
        lambda n: 1,
    ),
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


def quality(
    bench: Bench, seeds: int, sizes: Sequence[int], minutes: float
) -> tuple[Row, list[Row]]:
    """The table of all methods, and the figures about lego and the best of peft at its rank."""
    found: dict[tuple[str, int], list[float]] = {}
    ranks: dict[tuple[str, int], int] = {}
    started = time.monotonic()
    for seed in range(seeds):
        if time.monotonic() - started > 60 * minutes:
            break
        for size in sizes:
            group = group_of(seed, size)
            for name, rank, values in (*ours(bench, group, seed), *peers(bench, group, seed)):
                found.setdefault((name, size), []).append(statistics.mean(values))
                ranks[name, size] = rank
            print(f"quality: {size} adapters, seed {seed} done", file=sys.stderr, flush=True)
    rows = [
        {
            "part": "quality",
            "method": name,
            "adapters": size,
            "rank": ranks[name, size],
            "recovered": round(statistics.mean(values), 3),
            "seeds": [round(value, 3) for value in values],
        }
        for (name, size), values in found.items()
    ]
    figures: Row = {}
    for size in sizes:
        own = [row for row in rows if row["adapters"] == size]
        equal = [row for row in own if row["method"].startswith("peft") and row["rank"] == RANK]
        best = max(equal, key=lambda row: row["recovered"])
        (lego,) = (row for row in own if row["method"] == "lego")
        figures[f"lego_recovered_{size}"] = lego["recovered"]
        figures[f"best_peer_recovered_{size}"] = best["recovered"]
        figures[f"best_peer_{size}"] = best["method"]
    return figures, rows


def ours(bench: Bench, group: list[str], seed: int) -> list[tuple[str, int, list[float]]]:
    results = []
    for name, (method, params, weight) in OURS.items():
        bags = bench.merged(group, method, params, [weight(len(group))] * len(group), seed)
        with applied(bench.model, dense(bags)):
            values = bench.recovered(bench.model, group)
        results.append((name, max(bag.rank for bag in bags.values()), values))
    results.append(lorahub(bench, group, seed))
    return results


def lorahub(bench: Bench, group: list[str], seed: int) -> tuple[str, int, list[float]]:
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

    weights = search(loss, [0.0] * len(group), evaluations=EVALUATIONS, seed=seed)
    with applied(bench.model, combined(weights)):
        return "lorahub", RANK, bench.recovered(bench.model, group)


@cache
def loaded(bench: Bench, name: str) -> Bags:
    return bench.bags(name)


def sum_of(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([w * t for w, t in zip(weights, tensors, strict=True)]).sum(dim=0)


def peers(bench: Bench, group: list[str], seed: int) -> list[tuple[str, int, list[float]]]:
    """Every combination type of peft's add_weighted_adapter."""
    model = evaluation.load(DEMO / "base")
    model = PeftModel.from_pretrained(model, DEMO / "adapters" / group[0], group[0])
    for name in group[1:]:
        model.load_adapter(DEMO / "adapters" / name, name)
    results = []
    for kind, weighings in PEFT.items():
        density = {} if kind in ("linear", "cat", "svd") else {"density": 0.5}
        rank = {"svd_rank": RANK, "svd_full_matrices": False} if "svd" in kind else {}
        for label, weight in weighings.items():
            torch.manual_seed(seed)
            model.add_weighted_adapter(
                group, [weight(len(group))] * len(group), "merged", kind, **density, **rank
            )
            model.set_adapter("merged")
            model.eval()
            width = model.peft_config["merged"].r
            results.append((f"peft {kind}, {label}", width, bench.recovered(model, group)))
            model.delete_adapter("merged")
    return results


def darex(bench: Bench, seeds: int, drops: Sequence[float]) -> tuple[Row, list[Row]]:
    """Entries and atoms dropped at three rates; the loss on the adapter's own rows."""
    rows: list[Row] = []
    for seed in range(seeds):
        name = NAMES[seed % len(NAMES)]
        bags, probe = bench.bags(name), bench.outputs(name)
        full = dense(bags)
        for drop in drops:
            units = {"entry": drop_entries(bags, drop, seed)}
            if drop == 0.9:  # one atom in a hundred is nothing to rescale
                units["atom"] = dense(dict(drop_atoms(bags, drop, seed)))
            for unit, left in units.items():
                q = divisor(full, left, 1 - drop, probe)
                loss = {}
                for label, by in (("dare", 1 - drop), ("darex", q)):
                    with applied(bench.model, {key: d / by for key, d in left.items()}):
                        loss[label] = bench.loss(bench.model, name)
                rows.append(
                    {
                        "part": "darex",
                        "adapter": name,
                        "seed": seed,
                        "unit": unit,
                        "drop": drop,
                        "q": round(q, 4),
                        "perplexity_base": round(math.exp(bench.base[name]), 2),
                        "perplexity_whole": round(math.exp(bench.own[name]), 2),
                        "perplexity_dare": round(math.exp(loss["dare"]), 2),
                        "perplexity_darex": round(math.exp(loss["darex"]), 2),
                        "log_ratio": round(loss["darex"] - loss["dare"], 4),
                    }
                )
        print(f"darex: {name} done", file=sys.stderr, flush=True)
    figures = {}
    for drop in drops:
        logs = [r["log_ratio"] for r in rows if r["unit"] == "entry" and r["drop"] == drop]
        figures[f"darex_vs_dare_{drop * 100:.0f}"] = round(math.exp(statistics.mean(logs)), 3)
    return figures, rows


def scale(count: int, layers: int, shapes: Sequence[str]) -> tuple[Row, list[Row]]:
    """Our merge of many adapters in a process of its own; the others on single linears."""
    config = LLAMA_1B | {"num_hidden_layers": layers}
    geometry = Geometry.from_config(config)
    with tempfile.TemporaryDirectory() as folder:
        for index in range(count):
            write_random(Path(folder) / f"adapter-{index:02}", geometry, index)
        command = [sys.executable, __file__, "--merge", folder, json.dumps(config)]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        rows = [{"part": "scale", "adapters": count, **json.loads(run.stdout)}]
        print(rows[-1], file=sys.stderr, flush=True)
        timers: dict[str, Callable[[str], float]] = {
            "svd": lambda linear: svd_seconds(Path(folder), geometry, linear),
            "peft svd": lambda linear: peft_seconds("svd", geometry, linear, count),
            "peft ties": lambda linear: peft_seconds("ties", geometry, linear, count),
        }
        for method, timer in timers.items():
            seconds = {linear: timer(linear) for linear in shapes}
            whole = sum(seconds[linear] * SHAPES[linear] * layers / 16 for linear in shapes)
            rows.append(
                {
                    "part": "scale",
                    "adapters": count,
                    "method": method,
                    "seconds": round(whole, 1),
                    "seconds_by_linear": {name: round(value, 2) for name, value in seconds.items()},
                }
            )
            print(rows[-1], file=sys.stderr, flush=True)
    found = {row["method"]: row["seconds"] for row in rows}
    return {
        f"merge{count}_seconds": found["lego"],
        f"merge{count}_rss_gib": rows[0]["rss_gib"],
        f"svd{count}_seconds": found["svd"],
        f"peft_svd{count}_seconds": found["peft svd"],
        f"peft_ties{count}_seconds": found["peft ties"],
    }, rows


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
    parser.add_argument("--minutes", type=float, default=math.inf, help="for quality")
    parser.add_argument("--only", choices=("quality", "darex", "scale"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--merge", nargs=2, help=argparse.SUPPRESS)  # what `scale` runs
    a = parser.parse_args()
    if a.merge:
        merge_folder(Path(a.merge[0]), json.loads(a.merge[1]))
        return
    figures: Row = {}
    rows: list[Row] = []
    for name, part in parts_of(a).items():
        if a.only in (None, name):
            found, own = part()
            figures |= found
            rows += own
            print(report.write("merge", figures, rows, a.json))  # what is done is kept
    print(json.dumps(figures, indent=2))


def parts_of(a: argparse.Namespace) -> dict[str, Callable[[], tuple[Row, list[Row]]]]:
    if a.quick:
        bench = cache(lambda: Bench(3, a.data))
        return {
            "quality": lambda: quality(bench(), 1, (2,), a.minutes),
            "darex": lambda: darex(bench(), 1, (0.99,)),
            "scale": lambda: scale(8, 1, ["k_proj"]),
        }
    bench = cache(lambda: Bench(a.rows, a.data))
    return {
        "quality": lambda: quality(bench(), 5, (2, 3, 4), a.minutes),
        "darex": lambda: darex(bench(), 5, (0.9, 0.95, 0.99)),
        "scale": lambda: scale(ADAPTERS, 16, list(SHAPES)),
    }


if __name__ == "__main__":
    main()
