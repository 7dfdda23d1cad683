"""LoRAM: adapters trained on a slim base and lifted, on the dense base that was never trained on.

Usage: python benchmarks/loram.py DATA [--quick] [--work DIRECTORY] [--json FILE]

Half of the bundled base's body is cut (taylor).  On the slim base, aligned on bundled calibration
text or as it was cut, one adapter of rank 8 is trained per task on DATA/tasks/TASK/train.jsonl, and
lifted.  Losses are those of the bundled eval.jsonl rows, held out from training, in nats per
completion token.  Bytes trained on are those of the slim base's file.
With --work, what is trained is kept there, and a run that was stopped is taken up again.
"""

import argparse
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

import report
import torch

from pruning import evaluation
from pruning.adapters import atoms
from pruning.adapters.carry import lift
from pruning.geometry import Geometry
from pruning.jobs.outputs import slim_base
from pruning.methods.recovery import LoraParams
from pruning.pipeline import STAGES
from pruning.plan import Plan
from pruning.recipe import PruneSpec, Recipe
from pruning.text import load_tokenizer
from pruning.training.adapter import train_adapter
from pruning.training.data import Split, split

DEMO = Path(__file__).parent.parent / "deploy" / "demo"
TASKS = ("e2e_nlg", "wikisql", "gsm8k")
LENGTH, ROWS = 128, 50
Row = dict[str, Any]


def spec(tokens: int, sequences: int, target: float) -> PruneSpec:
    """The cut, followed by the alignment."""
    text = {"file": "bundled", "sequences": sequences, "length": LENGTH}
    align = {"tokens": tokens, "learning_rate": 1e-3, "checks": 5}
    recipe = {
        "name": "slim",
        "base": "demo",
        "target": target,
        "criterion": {"name": "taylor"},
        "recovery": [{"name": "align", "params": align}],
        "calibration": text,
        "training": {"file": "bundled", "sequences": 65536, "length": LENGTH},
        "evaluation": text,
    }
    return PruneSpec(
        recipe=Recipe.model_validate(recipe),
        base=DEMO / "base",
        adapters={},
        calibration=DEMO / "text" / "calibration.txt",
        training=DEMO / "text" / "calibration.txt",
        evaluation=DEMO / "text" / "evaluation.txt",
    )


def task_text(data: Path, task: str) -> Split:
    """The training rows of a task one after the other, cut to sequences."""
    path, tokenizer = data / "tasks" / task / "train.jsonl", load_tokenizer(DEMO / "base")
    examples = evaluation.rows(tokenizer, path, LENGTH, task)[:4000]
    stream = [token for ids, _ in examples for token in ids]
    whole = len(stream) // LENGTH * LENGTH
    return split(torch.tensor(stream[:whole]).view(-1, LENGTH)[:600], 0.05, seed=0)


def row(work: Path, data: Path, asked: PruneSpec, base: str, task: str, tokens: int) -> Row:
    """Train, lift and measure one adapter; `base` is cut or aligned."""
    started = work / f"{base}-{task}"
    started.mkdir(exist_ok=True)
    slim = work / "slice" / "model" if base == "cut" else slim_base(asked, work)
    params = LoraParams(tokens=tokens, learning_rate=3e-3, checks=5)
    adapter, outcome = train_adapter(slim, task_text(data, task), params, 0, started, quiet)
    plan = Plan.model_validate_json((work / "plan" / "plan.json").read_bytes())
    dense = Geometry.of(DEMO / "base")
    places = {"slim": (slim, adapter), "dense": (DEMO / "base", lift(adapter, dense, plan))}
    found: Row = {"task": task, "trained_on": base, "tokens": outcome.tokens}
    for name, (directory, placed) in places.items():
        target = started / f"on-{name}"
        atoms.write(placed, target, Geometry.of(directory), name)
        found[f"loss_{name}"] = loss(directory, task, None)
        found[f"loss_{name}_with"] = loss(directory, task, target)
    found["loss_dense_with_bundled"] = loss(DEMO / "base", task, DEMO / "adapters" / task)
    return found


def loss(base: Path, task: str, adapter: Path | None) -> float:
    """On the bundled held-out rows of a task."""
    tokenizer = load_tokenizer(DEMO / "base")
    examples = evaluation.rows(tokenizer, DEMO / "adapters" / task / "eval.jsonl", 256, task)
    model = evaluation.load(base)
    model = model if adapter is None else evaluation.with_adapter(model, adapter)
    return round(evaluation.completion_loss(model, examples[:ROWS], quiet), 4)


def quiet(fraction: float, message: str) -> None:
    """No progress."""


def figures(rows: list[Row], slim: Path) -> Row:
    """Ratios of bytes, and the mean part of the bundled adapter's gain that a lifted one has."""
    found: Row = {}
    for base in sorted({row["trained_on"] for row in rows}):
        own = [row for row in rows if row["trained_on"] == base]
        gains = [
            (r["loss_dense"] - r["loss_dense_with"])
            / (r["loss_dense"] - r["loss_dense_with_bundled"])
            for r in own
        ]
        found[f"loram_{base}_gain"] = round(statistics.mean(gains), 3)
        ratio = statistics.mean(r["loss_dense_with"] - r["loss_dense"] for r in own)
        found[f"loram_{base}_perplexity_ratio"] = round(math.exp(ratio), 3)
    sizes = [(d / "model.safetensors").stat().st_size for d in (slim, DEMO / "base")]
    return found | {
        "loram_lifted_below_dense": all(r["loss_dense_with"] < r["loss_dense"] for r in rows),
        "bytes_trained_on": sizes[0],
        "bytes_dense": sizes[1],
        "bytes_ratio": round(sizes[0] / sizes[1], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--target", type=float, default=0.5)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tasks, tokens = (TASKS[:1], 8_192) if options.quick else (TASKS, 65_536)
    asked = spec(tokens, 16 if options.quick else 64, options.target)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(exist_ok=True)
        if not (work / "aligned").exists():
            for stage in ("calibrate", "plan", "slice", "recover"):
                STAGES[stage](asked, work, quiet)
            (work / "aligned").touch()
        rows: list[Row] = []
        for base in ("aligned", "cut"):
            for task in tasks:
                rows.append(row(work, options.data, asked, base, task, tokens))
                found = figures(rows, slim_base(asked, work))
                path = report.write("loram", found, rows, options.json)
    print(path)


if __name__ == "__main__":
    main()
