"""Quality of one-shot pruning: nats per token over the dense base, for methods side by side.

Usage: python benchmarks/quality.py [--quick] [--seeds N] [--json FILE]

Every method cuts the bundled base to 75 % and 50 % of its body on the same calibration text, and
is measured on the same held-out text; nothing is trained.  A figure NAME_vs_PEER is our excess loss
(obs, refit in closed form) over the peer's, below 1 where ours is the better: flap is fluctuation
with bias compensation as published (global) or uniform, whichever is better; llmpruner is taylor;
best is the best row without our refit.  --quick takes three methods, less text and one seed.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import report

from pruning import evaluation
from pruning.evaluation import Windows
from pruning.geometry import Geometry
from pruning.jobs.outputs import slim_base
from pruning.pipeline import STAGES
from pruning.recipe import PruneSpec, Recipe, Text
from pruning.text import load_tokenizer

DEMO = Path(__file__).parent.parent / "deploy" / "demo"
TARGETS = (0.25, 0.5)  # fractions of the body that leave


@dataclass(frozen=True)
class Contender:
    """A way to prune; the name of its criterion, and what else differs from the defaults."""

    criterion: str
    allocator: str = "uniform"
    bias: bool = False
    refit: bool = False

    def recipe(self, target: float, seed: int, text: Text) -> Recipe:
        return Recipe(
            name="quality",
            base="demo",
            adapters=(),
            target=target,
            criterion={"name": self.criterion},
            allocator={"name": self.allocator},
            bias_compensation=self.bias,
            recovery=[{"name": "closed_form"}] if self.refit else [],
            calibration=text,
            evaluation=text,
            seed=seed,
        )


OURS = Contender("obs", refit=True)
FLAP = (Contender("fluctuation", "global", bias=True), Contender("fluctuation", bias=True))
LLM_PRUNER = Contender("taylor")
CONTENDERS = (  # to be extended by whoever adds a method
    OURS,
    Contender("obs"),
    Contender("obs", bias=True, refit=True),
    Contender("obs", "global", refit=True),
    LLM_PRUNER,
    Contender("taylor", refit=True),
    Contender("taylor", "global"),
    Contender("taylor", "global", refit=True),
    *FLAP,
    Contender("fluctuation"),
    Contender("fluctuation", refit=True),
    Contender("fluctuation", bias=True, refit=True),
    Contender("magnitude"),
    Contender("magnitude", refit=True),
    Contender("random"),
    Contender("random", refit=True),
)
QUICK = (OURS, FLAP[1], LLM_PRUNER)


@dataclass(frozen=True)
class Row:
    """What became of the base; nats per token, and over those of the dense base."""

    criterion: str
    allocator: str
    bias: bool
    refit: bool
    target: float
    seed: int
    kept: float
    nats: float
    excess: float
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=1, help="calibration samples to average over")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    contenders = QUICK if options.quick else CONTENDERS
    text = Text(file="text/calibration.txt", sequences=16 if options.quick else 128)
    windows = held_out(16 if options.quick else 128)
    dense = nats(DEMO / "base", windows)
    rows: list[Row] = []
    for seed in range(options.seeds):
        for contender in contenders:
            rows += measured(contender, seed, text, windows, dense)
    path = report.write(
        "quality", figures(rows, dense), [asdict(row) for row in rows], options.json
    )
    print(path)


def held_out(count: int) -> Windows:
    text = Text(file="text/evaluation.txt", sequences=count)
    return evaluation.windows(load_tokenizer(DEMO / "base"), DEMO / text.file, text)


def nats(model: Path, windows: Windows) -> float:
    """Mean negative log likelihood per token."""
    loaded = evaluation.load(model)
    return math.log(evaluation.perplexity(loaded, windows, quiet).token)


def measured(
    contender: Contender, seed: int, text: Text, windows: Windows, dense: float
) -> list[Row]:
    """One row per target; the statistics are collected once, and their time counts in each."""
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        calibration = seconds(spec(contender.recipe(TARGETS[0], seed, text)), work, ["calibrate"])
        for target in TARGETS:
            asked = spec(contender.recipe(target, seed, text))
            cutting = seconds(asked, work, ["plan", "slice", "recover"])
            model = slim_base(asked, work)
            found = nats(model, windows)
            rows.append(
                Row(
                    **asdict(contender),
                    target=target,
                    seed=seed,
                    kept=round(kept(model), 4),
                    nats=round(found, 4),
                    excess=round(found - dense, 4),
                    seconds=round(calibration + cutting, 1),
                )
            )
            print(rows[-1], flush=True)
    return rows


def spec(recipe: Recipe) -> PruneSpec:
    text = DEMO / recipe.calibration.file
    return PruneSpec(
        recipe=recipe, base=DEMO / "base", adapters={}, calibration=text, evaluation=text
    )


def seconds(asked: PruneSpec, work: Path, stages: Sequence[str]) -> float:
    """Run stages; how long they took."""
    started = time.monotonic()
    for stage in stages:
        STAGES[stage](asked, work, quiet)
    return time.monotonic() - started


def kept(model: Path) -> float:
    """Fraction of the body that a slim base still has."""
    slim, dense = (geometry(path).body_parameters for path in (model, DEMO / "base"))
    return slim / dense


def geometry(model: Path) -> Geometry:
    return Geometry.from_config(json.loads((model / "config.json").read_text()))


def figures(rows: Sequence[Row], dense: float) -> dict[str, Any]:
    """Ratios of excess losses, each the mean over seeds."""
    found: dict[str, Any] = {"dense_nats": round(dense, 4)}
    for target in TARGETS:
        excess = {c: mean_excess(rows, c, target) for c in CONTENDERS}
        ours, percent = excess[OURS], round(100 * target)
        peers = {
            "flap": [excess[c] for c in FLAP],
            "llmpruner": [excess[LLM_PRUNER]],
            "best": [value for c, value in excess.items() if not c.refit],
        }
        for peer, values in peers.items():
            known = [value for value in values if not math.isnan(value)]
            found[f"oneshot{percent}_vs_{peer}"] = round(ours / min(known), 3)
    return found


def mean_excess(rows: Sequence[Row], contender: Contender, target: float) -> float:
    """NaN where the contender was not measured."""
    wanted = {**asdict(contender), "target": target}
    values = [row.excess for row in rows if wanted.items() <= asdict(row).items()]
    return sum(values) / len(values) if values else math.nan


def quiet(fraction: float, message: str) -> None:
    """Progress that nobody hears."""


if __name__ == "__main__":
    main()
