"""Fleet-aware importance against importance for the base alone: what a cut costs each adapter.

Usage: python benchmarks/fleet.py [--quick] [--data DIRECTORY] [--seeds N] [--json FILE]

The bundled base and its five adapters, one cut by Taylor and one global ranking, no recovery.
Costs are slim minus dense, in nats per token: of each adapter on the completions of its own
held-out rows, of the base on text.  Tenants are calibrated on the bundled calibration text and,
with --data, on training rows of their own task (DIRECTORY/tasks/NAME/train.jsonl, as the scripts in
deploy/demo/train read them); never on the rows that are measured.
"""

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import report
import torch

from pruning import evaluation
from pruning.pipeline import STAGES
from pruning.recipe import PruneSpec, Recipe
from pruning.text import load_tokenizer

DEMO = Path(__file__).parent.parent / "deploy" / "demo"
ADAPTERS = {path.name: path for path in sorted((DEMO / "adapters").iterdir())}
TARGET = 0.4
ROWS = 400  # of a task's training rows


def quiet(fraction: float, message: str) -> None:
    """Progress that nobody follows."""


class Bench:
    """The measure: held-out rows of every adapter and windows of text."""

    def __init__(self, rows: int, windows: int):
        self.tokenizer = load_tokenizer(DEMO / "base")
        self.rows = {
            name: evaluation.rows(self.tokenizer, path / "eval.jsonl", 256, name)[:rows]
            for name, path in ADAPTERS.items()
        }
        text = Recipe.model_validate(recipe(0, None, windows, windows)).evaluation
        self.windows = evaluation.windows(self.tokenizer, DEMO / "text/evaluation.txt", text)

    def costs(self, model: Path, adapters: Mapping[str, Path]) -> dict[str, float]:
        """The loss of every adapter, and the log of the base's perplexity, in nats per token."""
        base = evaluation.load(model)
        losses = {"base": math.log(evaluation.perplexity(base, self.windows, quiet).token)}
        for name, path in adapters.items():
            adapted = evaluation.with_adapter(base, path)
            losses[name] = evaluation.completion_loss(adapted, self.rows[name], quiet)
            base = adapted.unload()
        return losses


def recipe(seed: int, fleet: Any, sequences: int, windows: int) -> dict[str, Any]:
    return {
        "name": "slim",
        "base": "demo",
        "target": TARGET,
        "criterion": {"name": "taylor"},
        "allocator": {"name": "global"},
        "fleet": fleet,
        "calibration": {"file": "calibration", "sequences": sequences, "length": 128},
        "evaluation": {"file": "evaluation", "sequences": windows},
        "seed": seed,
    }


def training_text(data: Path, name: str, work: Path) -> Path:
    """The first training rows of a task as text."""
    lines = (data / "tasks" / name / "train.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines[:ROWS] if line]
    path = work / f"{name}.txt"
    path.write_text("\n\n".join(row["prompt"] + row["completion"] for row in rows), "utf-8")
    return path


def prune(asked: dict[str, Any], texts: Mapping[str, Path], work: Path) -> Path:
    """Cut and carry; the directory with both results."""
    spec = PruneSpec(
        recipe=Recipe.model_validate(asked),
        base=DEMO / "base",
        adapters=ADAPTERS,
        calibration=DEMO / "text/calibration.txt",
        evaluation=DEMO / "text/evaluation.txt",
        fleet_texts=dict(texts),
    )
    for stage in ("calibrate", "plan", "slice", "carry"):
        STAGES[stage](spec, work, quiet)
    return work


def fleets(texts: Mapping[str, Path], sequences: int) -> dict[str, Any]:
    """The ways to weigh tenants that are compared, by name."""
    own = {name: {"file": name, "sequences": sequences, "length": 128} for name in texts}
    found: dict[str, Any] = {"base alone": None}
    found |= {f"{how}, one text": {"combine": how} for how in ("mean", "max")}
    if texts:
        found |= {f"{how}, own texts": {"combine": how, "texts": own} for how in ("mean", "max")}
    return found


def row(way: str, seed: int, dense: Mapping[str, float], slim: Mapping[str, float]) -> Any:
    excess = {name: slim[name] - dense[name] for name in dense}
    adapters = {name: excess[name] for name in ADAPTERS}
    return {
        "importance": way,
        "seed": seed,
        "excess_nats": {name: round(value, 4) for name, value in excess.items()},
        "worst_adapter": round(max(adapters.values()), 4),
        "mean_adapter": round(statistics.mean(adapters.values()), 4),
    }


def summary(rows: list[Any]) -> dict[str, float]:
    """Means over the seeds."""

    def mean(values: Any) -> float:
        return round(statistics.mean(values), 4)

    return {
        "worst_adapter": mean(r["worst_adapter"] for r in rows),
        "mean_adapter": mean(r["mean_adapter"] for r in rows),
        "base": mean(r["excess_nats"]["base"] for r in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="little text, few rows")
    parser.add_argument("--data", type=Path, help="folder with the training rows of the tasks")
    parser.add_argument("--seeds", type=int, default=1, help="how many calibration seeds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sequences, num_rows, windows = (4, 4, 4) if options.quick else (16, 30, 12)
    bench, rows = Bench(num_rows, windows), []
    dense = bench.costs(DEMO / "base", ADAPTERS)
    with tempfile.TemporaryDirectory() as folder:
        texts = {}
        if options.data:
            texts = {n: training_text(options.data, n, Path(folder)) for n in ADAPTERS}
        ways = fleets(texts, sequences)
        for seed in range(options.seeds):
            for way, fleet in ways.items():
                with tempfile.TemporaryDirectory() as work:
                    asked = recipe(seed, fleet, sequences, windows)
                    done = prune(asked, texts if fleet and fleet.get("texts") else {}, Path(work))
                    carried = {n: done / "carry" / "adapters" / n for n in ADAPTERS}
                    slim = bench.costs(done / "slice" / "model", carried)
                rows.append(row(way, seed, dense, slim))
                print(json.dumps(rows[-1]), flush=True)
    figures = {way: summary([r for r in rows if r["importance"] == way]) for way in ways}
    print(json.dumps(figures, indent=2))
    if options.json or not options.quick:
        print(report.write("fleet", {"target": TARGET, "excess_nats": figures}, rows, options.json))


if __name__ == "__main__":
    main()
