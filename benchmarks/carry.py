"""Carrying adapters through a cut: how much of what index selection loses the refit gets back.

Usage: python benchmarks/carry.py DATA [--quick] [--json FILE]

DATA/tasks/NAME/train.jsonl are training rows of the bundled adapters' tasks; ROWS of each, spread
evenly, are an adapter's own text, and its bundled eval.jsonl, held out from training, measures it.
The base is cut to 75 % and 50 % of its body (obs, refit in closed form); then adapters are carried
by index (project) and refit.  Nothing is trained.  carry_gap_closed_NN is the part of the loss that
project adds to the dense base with its adapter which refit takes away again, in nats per completion
token and in perplexity, the mean over the adapters.  --quick takes two adapters and less text.
"""

import argparse
import math
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import report

from pruning import evaluation
from pruning.jobs.outputs import slim_base
from pruning.pipeline import STAGES
from pruning.recipe import PruneSpec, Recipe
from pruning.text import load_tokenizer

DEMO = Path(__file__).parent.parent / "deploy" / "demo"
TARGETS = (0.25, 0.5)
ROWS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names = sorted(path.name for path in (DEMO / "adapters").iterdir())
    names, rows = (names[:2], 40) if options.quick else (names, ROWS)
    sequences = 16 if options.quick else 64
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        adapters = {name: with_text(options.data, work, name, rows) for name in names}
        dense = run(DEMO / "base", adapters.items())
        found = []
        for target in TARGETS:
            found += measured(work, adapters, target, sequences, dense)
    path = report.write("carry", figures(found), found, options.json)
    print(path)


def with_text(data: Path, work: Path, name: str, count: int) -> Path:
    """A copy of a bundled adapter, with training rows of its task as its own text."""
    adapter = work / "adapters" / name
    shutil.copytree(DEMO / "adapters" / name, adapter)
    lines = (data / "tasks" / name / "train.jsonl").read_text(encoding="utf-8").split("\n")
    lines = [line for line in lines if line.strip()]
    chosen = lines[:: max(1, len(lines) // count)][:count]
    (adapter / "calibration.jsonl").write_text("\n".join(chosen) + "\n", encoding="utf-8")
    return adapter


def measured(
    work: Path,
    adapters: dict[str, Path],
    target: float,
    sequences: int,
    dense: dict[str, float],
) -> list[dict[str, Any]]:
    """The loss of every adapter: on the dense base, projected, and refit."""
    losses = {"dense": dense}
    for how in ("project", "refit"):
        asked = spec(adapters, target, how, sequences)
        cut = ("calibrate", "plan", "slice", "recover") if how == "project" else ()
        for stage in (*cut, "carry"):
            STAGES[stage](asked, work, quiet)
        carried = [(name, work / "carry" / "adapters" / name) for name in adapters]
        losses[how] = run(slim_base(asked, work), carried)
    rows = []
    for name in adapters:
        row = {how: round(found[name], 4) for how, found in losses.items()}
        rows.append({"adapter": name, "target": target, **row})
        print(rows[-1], flush=True)
    return rows


def run(base: Path, adapters: Iterable[tuple[str, Path]]) -> dict[str, float]:
    """Nats per completion token, by adapter."""
    tokenizer, model = load_tokenizer(DEMO / "base"), evaluation.load(base)
    losses = {}
    for name, path in adapters:
        examples = evaluation.rows(tokenizer, path / "eval.jsonl", 512, name)
        adapted = evaluation.with_adapter(model, path)
        losses[name] = evaluation.completion_loss(adapted, examples, quiet)
        model = adapted.unload()
    return losses


def spec(adapters: dict[str, Path], target: float, how: str, sequences: int) -> PruneSpec:
    text = {"file": "text/calibration.txt", "sequences": sequences}
    recipe = Recipe.model_validate(
        {
            "name": "carry",
            "base": "demo",
            "target": target,
            "criterion": {"name": "obs"},
            "recovery": [{"name": "closed_form"}],
            "carry": how,
            "calibration": text,
            "evaluation": text,
        }
    )
    path = DEMO / text["file"]
    return PruneSpec(
        recipe=recipe, base=DEMO / "base", adapters=adapters, calibration=path, evaluation=path
    )


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Parts of the gap, means over adapters."""
    found = {}
    for target in TARGETS:
        chosen = [row for row in rows if row["target"] == target]
        for suffix, of in (("", float), ("_perplexity", math.exp)):
            parts = [
                (of(r["project"]) - of(r["refit"])) / (of(r["project"]) - of(r["dense"]))
                for r in chosen
            ]
            name = f"carry_gap_closed_{round(100 * target)}{suffix}"
            found[name] = round(sum(parts) / len(parts), 3)
    return found


def quiet(fraction: float, message: str) -> None:
    """Progress that nobody hears."""


if __name__ == "__main__":
    main()
