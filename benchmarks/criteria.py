"""Criteria side by side: perplexity of the bundled base after one-shot cuts that really hurt.

Usage: python benchmarks/criteria.py [--quick] [--json FILE]

A small Llama hides the differences between criteria at 20 %, so 80 and 90 % of the FFN channels or
a quarter and a half of the KV groups leave, uniformly and by one global ranking.  No recovery.
Calibration text is drawn with three seeds; what does not depend on it is measured once.  Orders
that the papers claim are checked pairwise: reproduced means that the mean difference over the
seeds exceeds its standard error.  --quick takes one seed, one cut and little text, and
leaves out ecoflap, whose hundreds of forwards need minutes.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import report
import torch

from pruning import evaluation
from pruning.allocation.solve import problem, solve
from pruning.calibration import collect
from pruning.export import slim_config
from pruning.geometry import Geometry
from pruning.importance import score_layers
from pruning.methods import resolve
from pruning.recipe import Method, Recipe, Text
from pruning.registry import LayerScores
from pruning.slicing import slice_base
from pruning.stats import Statistics
from pruning.text import calibration_ids, load_tokenizer
from pruning.weights.checkpoint import Checkpoint

DEMO = Path(__file__).parent.parent / "deploy" / "demo"
FEW = 10  # sequences of the regime that Pruning by Explaining is about


@dataclass(frozen=True)
class Scorer:
    """A criterion with parameters, and how much text it sees."""

    label: str
    method: Method
    few: bool = False


@dataclass(frozen=True)
class Cut:
    """What leaves, as a fraction of the units of one kind."""

    label: str
    unit: str
    fraction: float


@dataclass(frozen=True)
class Case:
    scorer: str
    allocator: str
    cut: str
    bias: bool = False


def scorer(label: str, name: str, few: bool = False, **params: Any) -> Scorer:
    return Scorer(label, Method(name=name, params=params), few)


SCORERS = (
    scorer("random", "random"),
    scorer("magnitude", "magnitude"),
    scorer("pq", "pq"),
    scorer("pq retained", "pq", variant="retained"),
    scorer("wanda", "wanda"),
    scorer("minitron", "minitron"),
    scorer("fluctuation", "fluctuation"),
    scorer("fluctuation released", "fluctuation", variant="released"),
    scorer("cfsp", "cfsp"),
    scorer("cfsp released", "cfsp", variant="released"),
    scorer("taylor", "taylor"),
    scorer("taylor vector", "taylor", variant="vector"),
    scorer("taylor second", "taylor", variant="second"),
    scorer("taylor mix", "taylor", variant="mix"),
    scorer("entropy", "entropy"),
    scorer("gblm", "gblm"),
    scorer("ecoflap", "ecoflap"),
    scorer("relevance", "relevance"),
    scorer("lora_guided", "lora_guided"),
    scorer("taylor, 10 sequences", "taylor", few=True),
    scorer("wanda, 10 sequences", "wanda", few=True),
    scorer("relevance, 10 sequences", "relevance", few=True),
)
WITHOUT_TEXT = frozenset({"magnitude", "pq", "pq retained"})
CUTS = (
    Cut("FFN 80 %", "ffn_channel", 0.8),
    Cut("FFN 90 %", "ffn_channel", 0.9),
    Cut("KV 1/4", "kv_group", 0.25),
    Cut("KV 1/2", "kv_group", 0.5),
)
F80, F90, K2 = "FFN 80 %", "FFN 90 %", "KV 1/2"
CLAIMS = (  # paper, what it holds to be better, and than what
    ("Wanda", Case("wanda", "uniform", F80), Case("magnitude", "uniform", F80)),
    ("CFSP, fixed", Case("cfsp", "uniform", F80), Case("wanda", "uniform", F80)),
    ("CFSP, released", Case("cfsp released", "uniform", F80), Case("wanda", "uniform", F80)),
    ("CFSP, fixed", Case("cfsp", "uniform", F80), Case("magnitude", "uniform", F80)),
    (
        "Pruning by Explaining",
        Case("relevance, 10 sequences", "uniform", F80),
        Case("magnitude", "uniform", F80),
    ),
    (
        "Pruning by Explaining",
        Case("relevance, 10 sequences", "uniform", F80),
        Case("taylor, 10 sequences", "uniform", F80),
    ),
    ("Global MP", Case("magnitude", "global", F90), Case("magnitude", "uniform", F90)),
    ("LLM-Pruner", Case("taylor", "uniform", F80), Case("random", "uniform", F80)),
    ("LLM-Pruner", Case("taylor", "uniform", F80), Case("magnitude", "uniform", F80)),
    ("LLM-Pruner", Case("taylor", "uniform", K2), Case("magnitude", "uniform", K2)),
    ("FLAP", Case("fluctuation", "global", F80, True), Case("wanda", "uniform", F80)),
    ("FLAP", Case("fluctuation", "global", F80, True), Case("taylor", "global", F80)),
    ("FLAP", Case("fluctuation", "global", F80, True), Case("fluctuation", "global", F80)),
    ("GBLM", Case("gblm", "uniform", F80), Case("wanda", "uniform", F80)),
    ("GBLM", Case("gblm", "uniform", F80), Case("magnitude", "uniform", F80)),
    ("ECoFLaP", Case("ecoflap", "global", F80), Case("wanda", "uniform", F80)),
    ("HFPrune", Case("entropy", "uniform", F80), Case("taylor", "uniform", F80)),
    ("LoRAPrune, one shot", Case("lora_guided", "uniform", F80), Case("magnitude", "uniform", F80)),
)


class Bench:
    """The bundled base, its evaluation windows, and a place to write slim bases to."""

    def __init__(self, sequences: int, windows: int, work: Path):
        self.checkpoint, self.work = Checkpoint(DEMO / "base"), work
        self.tokenizer = load_tokenizer(DEMO / "base")
        self.calibration = Text(file="calibration", sequences=sequences)
        text = Text(file="evaluation", sequences=windows)
        self.windows = evaluation.windows(self.tokenizer, DEMO / "text/evaluation.txt", text)

    def statistics(self, scorers: Sequence[Scorer], text: Text, seed: int) -> Statistics:
        """One calibration pass for all of them."""
        found = [resolve("criterion", s.method) for s in scorers]
        needs = frozenset().union(*(entry.needs | params.needs for entry, params in found))
        path = DEMO / "text" / "calibration.txt"
        ids = calibration_ids(self.tokenizer, path, text, seed)
        return collect(self.checkpoint, ids, needs, self.work, quiet)

    def scores(self, scorer: Scorer, found: Statistics, seed: int) -> list[LayerScores]:
        case = cases(scorer, CUTS)[0]  # scores depend on neither allocator nor cut
        recipe = recipe_of(self.checkpoint.geometry, case, CUTS[0], scorer.method)
        recipe = recipe.model_copy(update={"seed": seed})
        return score_layers(self.checkpoint, found, recipe, quiet)

    def perplexity(
        self, case: Case, method: Method, scores: Sequence[LayerScores], found: Statistics
    ) -> float:
        """Per token, of the slim base that this case makes."""
        (cut,) = (cut for cut in CUTS if cut.label == case.cut)
        recipe = recipe_of(self.checkpoint.geometry, case, cut, method)
        path = DEMO / "text" / "calibration.txt"
        ids = partial(calibration_ids, self.tokenizer, path, self.calibration, 0)
        plan = solve(problem(self.checkpoint, recipe, scores, found, ids, quiet))
        config = slim_config(self.checkpoint.config, plan, "auto")
        with tempfile.TemporaryDirectory(dir=self.work) as model:
            slice_base(self.checkpoint, plan, config, found, Path(model), quiet)
            base = evaluation.load(Path(model))
        return evaluation.perplexity(base, self.windows, quiet).token


def recipe_of(geometry: Geometry, case: Case, cut: Cut, method: Method) -> Recipe:
    """Only the units of the cut's kind leave; a layer may fall to 16 channels."""
    layers = geometry.layers
    total = (
        sum(layer.intermediate_size for layer in layers) * geometry.ffn_channel_parameters(0)
        if cut.unit == "ffn_channel"
        else sum(layer.num_kv_heads for layer in layers) * geometry.kv_group_parameters(0)
    )
    released = method.name == "fluctuation" and "released" in method.params.values()
    normalize = {"normalize": "none"} if released and case.allocator == "global" else {}
    text = Text(file="text")
    return Recipe(
        name="slim",
        base="demo",
        target=cut.fraction * total / geometry.body_parameters,
        criterion=method,
        allocator=Method(name=case.allocator, params=normalize),
        units=(cut.unit,),
        floors={"kv_groups": 1, "ffn_fraction": 0.02},
        bias_compensation=case.bias,
        calibration=text,
        evaluation=text,
    )


def quiet(fraction: float, message: str) -> None:
    """Progress that nobody follows."""


def cases(scorer: Scorer, cuts: Sequence[Cut]) -> list[Case]:
    """All cuts with both allocators; with bias compensation where a paper has it."""
    found = [Case(scorer.label, a, cut.label) for cut in cuts for a in ("uniform", "global")]
    if scorer.label == "fluctuation":
        found += [replace(case, bias=True) for case in found]
    if scorer.few:
        found = [case for case in found if case.cut.startswith("FFN")]
    return found


def measure(
    bench: Bench, scorers: Sequence[Scorer], seeds: Sequence[int], cuts: Sequence[Cut]
) -> dict[Case, list[float]]:
    """Perplexities of every case, one per seed."""
    found: dict[Case, list[float]] = {}
    for seed in seeds:
        for few in (False, True):
            chosen = [s for s in scorers if s.few == few]
            sequences = FEW if few else bench.calibration.sequences
            text = bench.calibration.model_copy(update={"sequences": sequences})
            started = time.monotonic()
            collected = bench.statistics(chosen, text, seed)
            print(f"seed {seed}: calibrated in {time.monotonic() - started:.0f} s", flush=True)
            for scorer in chosen:
                if seed != seeds[0] and scorer.label in WITHOUT_TEXT:
                    continue
                scores = bench.scores(scorer, collected, seed)
                for case in cases(scorer, cuts):
                    value = bench.perplexity(case, scorer.method, scores, collected)
                    found.setdefault(case, []).append(value)
                    print(f"{value:9.2f}  seed {seed}  {case}", flush=True)
    return found


def row(case: Case, values: Sequence[float]) -> dict[str, Any]:
    return {
        "criterion": case.scorer,
        "allocator": case.allocator,
        "cut": case.cut,
        "bias_compensation": case.bias,
        "perplexity": round(statistics.mean(values), 2),
        "deviation": round(statistics.stdev(values), 2) if len(values) > 1 else None,
        "seeds": [round(value, 3) for value in values],
    }


def verdict(
    paper: str, better: Case, worse: Case, found: dict[Case, list[float]]
) -> dict[str, Any] | None:
    """Whether `better` has the lower perplexity by more than a standard error, paired by seed."""
    if better not in found or worse not in found:
        return None
    one, other = found[better], found[worse]
    count = max(len(one), len(other))
    one, other = (values * count if len(values) == 1 else values for values in (one, other))
    gains = [w - b for b, w in zip(one, other, strict=True)]
    error = statistics.stdev(gains) / math.sqrt(count) if count > 1 else 0.0
    gain = statistics.mean(gains)
    return {
        "paper": paper,
        "claim": f"{describe(better)} < {describe(worse)}, {better.cut}",
        "better": round(statistics.mean(one), 2),
        "worse": round(statistics.mean(other), 2),
        "standard_error": round(error, 2),
        "reproduced": gain > error,
    }


def describe(case: Case) -> str:
    return f"{case.scorer} {case.allocator}{' + bias' if case.bias else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="one seed and cut, little text, no ecoflap"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sequences, windows = (8, 8) if options.quick else (64, 40)
    seeds, cuts = ((0,), CUTS[:1]) if options.quick else ((0, 1, 2), CUTS)
    scorers = [s for s in SCORERS if not options.quick or s.label != "ecoflap"]
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(sequences, windows, Path(work))
        dense = evaluation.perplexity(evaluation.load(DEMO / "base"), bench.windows, quiet).token
        found = measure(bench, scorers, seeds, cuts)
    verdicts = [v for claim in CLAIMS if (v := verdict(*claim, found))]
    figures = {
        "dense_perplexity": round(dense, 2),
        "calibration": f"{sequences} sequences of 256 tokens, seeds {list(seeds)}",
        "evaluation_tokens": bench.windows.num_tokens,
        "claims_reproduced": sum(v["reproduced"] for v in verdicts),
        "claims": verdicts,
    }
    print(json.dumps(figures, indent=2))
    if options.json or not options.quick:
        rows = [row(case, values) for case, values in found.items()]
        print(report.write("criteria", figures, rows, options.json))


if __name__ == "__main__":
    main()
