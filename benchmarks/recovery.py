"""Recovery: how much of what a cut costs each method brings back, all for the same tokens.

Usage: python benchmarks/recovery.py [--quick] [--tokens N] [--data DIRECTORY] [--json FILE]

Cuts the bundled model by 25 % and by 50 % of its body (criterion taylor, allocator uniform), trains
every method on the bundled calibration text, or on DIRECTORY/wikitext-2/train.txt, and measures
nats per token above the dense model on the held-out evaluation text.  Each method's learning rate
is the one of RATES that does best after a quarter of the tokens on the 50 % cut, judged by
next-token loss on the held-out part of the training text; --quick takes the middle one, and the
50 % cut alone.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import report

from pruning import evaluation
from pruning.pipeline import STAGES
from pruning.recipe import PruneSpec, Recipe
from pruning.text import load_tokenizer
from pruning.training.data import Split, training_split
from pruning.training.losses import next_token
from pruning.training.trainer import held_out_loss

DEMO = Path(__file__).parent.parent / "deploy" / "demo"
TARGETS = (0.25, 0.5)
RATES = {
    "distill": (5e-4, 1e-3, 2e-3),
    "lora": (1e-3, 3e-3, 1e-2),
    "lora_distill": (1e-3, 3e-3, 1e-2),
    "norms": (3e-3, 1e-2, 3e-2),
}
BATCH_TOKENS = 1024

Row = dict[str, Any]


class Bench:
    """The bundled model, its texts, and a cut of it for each target."""

    def __init__(self, work: Path, data: Path | None, quick: bool):
        self.work, self.quick = work, quick
        self.training = data and data.absolute() / "wikitext-2" / "train.txt"
        self.length = 64 if quick else 256
        tokenizer = load_tokenizer(DEMO / "base")
        asked = self.spec(TARGETS[0])
        self.text = evaluation.windows(tokenizer, asked.evaluation, asked.recipe.evaluation)
        self.held_out = 0.01 if quick else 0.02
        self.split: Split = training_split(asked, self.held_out)
        self.dense = self.nats(DEMO / "base")

    def spec(self, target: float, *recovery: Mapping[str, Any]) -> PruneSpec:
        text = {"file": "bundled", "sequences": 8 if self.quick else 64, "length": self.length}
        training = {"file": "given", "sequences": 65536, "length": self.length}
        recipe = {
            "name": "slim",
            "base": "demo",
            "target": target,
            "criterion": {"name": "taylor"},
            "recovery": list(recovery),
            "calibration": text,
            "training": training if self.training else None,
            "evaluation": text,
        }
        return PruneSpec(
            recipe=Recipe.model_validate(recipe),
            base=DEMO / "base",
            adapters={},
            calibration=DEMO / "text" / "calibration.txt",
            training=self.training,
            evaluation=DEMO / "text" / "evaluation.txt",
        )

    def cut(self, target: float) -> Path:
        """The slim base of a target, nothing recovered."""
        work = self.work / str(target)
        if not work.exists():
            work.mkdir()
            for stage in ("calibrate", "plan", "slice"):
                STAGES[stage](self.spec(target), work, quiet)
        return work / "slice" / "model"

    def recovered(self, target: float, method: str, rate: float, tokens: int) -> tuple[Path, str]:
        """The slim base after a method, and the last thing that its training said."""
        said = [""]
        batch = BATCH_TOKENS // self.length
        params = {"tokens": tokens, "learning_rate": rate, "batch": batch}
        params |= {"held_out": self.held_out, "checks": 2 if self.quick else 5}
        asked = self.spec(target, {"name": method, "params": params})
        work = self.cut(target).parents[1]
        STAGES["recover"](asked, work, lambda fraction, message: said.append(message))
        return work / "recover" / "model", said[-1]

    def nats(self, model: Path) -> float:
        """Per token of the evaluation text."""
        return math.log(evaluation.perplexity(evaluation.load(model), self.text, quiet).token)

    def held_out_loss(self, model: Path) -> float:
        """Next-token loss on the held-out part of the training text."""
        return held_out_loss(next_token(evaluation.load(model)), self.split)


def quiet(fraction: float, message: str) -> None:
    return None


def best_rate(bench: Bench, method: str, rates: Sequence[float], tokens: int) -> tuple[float, Row]:
    """The rate that does best on text held out from training, and what each did."""
    found = {}
    for rate in rates:
        model, _ = bench.recovered(TARGETS[-1], method, rate, tokens)
        found[rate] = round(bench.held_out_loss(model), 4)
        say(method=method, rate=rate, held_out=found[rate])
    losses = {f"{rate:g}": loss for rate, loss in found.items()}
    return min(found, key=lambda rate: found[rate]), losses


def measured(bench: Bench, rates: Mapping[str, float], tokens: int) -> Iterator[Row]:
    """A row for each cut, bare and after each method."""
    for target in TARGETS[1:] if bench.quick else TARGETS:
        bare = bench.nats(bench.cut(target)) - bench.dense
        yield {"target": target, "recovery": None, "nats_above_dense": round(bare, 4)}
        for method, rate in rates.items():
            started = time.monotonic()
            model, said = bench.recovered(target, method, rate, tokens)
            seconds = time.monotonic() - started
            above = bench.nats(model) - bench.dense
            yield {
                "target": target,
                "recovery": method,
                "learning_rate": rate,
                "tokens": tokens,
                "nats_above_dense": round(above, 4),
                "ratio_to_bare": round(above / bare, 4),
                "seconds": round(seconds, 1),
                "training": said,
            }


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few tokens, no search of rates")
    parser.add_argument("--tokens", type=int, default=65_536, help="budget of each method")
    parser.add_argument("--data", type=Path, help="folder with another text to train on")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go")
    options = parser.parse_args()
    tokens = 2 * BATCH_TOKENS if options.quick else options.tokens
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(Path(work), options.data, options.quick)
        chosen, searched = dict[str, float](), dict[str, Row]()
        for method, rates in RATES.items():
            if options.quick:
                chosen[method] = rates[1]
            else:
                chosen[method], searched[method] = best_rate(bench, method, rates, tokens // 4)
        rows = []
        for row in measured(bench, chosen, tokens):
            say(**row)
            rows.append(row)
    figures = {
        f"{row['recovery']}_{row['target']:.0%}_ratio_to_bare": row["ratio_to_bare"]
        for row in rows
        if row["recovery"]
    }
    figures |= {"dense_nats": round(bench.dense, 4), "held_out_loss_by_rate": searched}
    print(json.dumps(figures, indent=2))
    if options.json or not options.quick:
        print(report.write("recovery", figures, rows, options.json))


if __name__ == "__main__":
    main()
