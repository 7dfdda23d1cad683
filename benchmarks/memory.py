"""Memory and time of pruning jobs: peak resident memory of the stages, each in its own process.

Usage: python benchmarks/memory.py [--quick] [--seven-b [--layers N]] [--work DIRECTORY]
       [--json FILE]

rss_depth_ratio is the peak of all stages that make the artifact (obs, refit in closed form) on a
random base of 64 layers over that on one of 8 layers of the same shape, each the median of TURNS
jobs: what the C library keeps of freed memory differs by some percent from run to run.  The
evaluation, which runs both bases whole, is left out of it.  bundled_seconds is the bundled model
without adapters, one-shot and with its report, on two threads, and bundled_vs_fluctuation how many
times as long as with FLAP's criterion and bias and without a refit.  rss_7b_gib, only with
--seven-b, is the same peak on a random fp16 checkpoint of Llama-7B's shape, in shards; it takes
more than an hour of one core and 55 GB of disk, and --layers makes it shallower.  A run with the
same DIRECTORY takes up one that was interrupted.  --quick takes 2 and 8 layers and a quarter of
the text, one turn of each, and leaves the bundled model out.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import report
import torch

from pruning.geometry import Geometry
from pruning.jobs.kinds import stages_of
from pruning.recipe import PruneSpec, Recipe
from pruning.weights.tensors import expected
from pruning.weights.writer import Entry, write

DEMO = Path(__file__).parent.parent / "deploy" / "demo"
MAKING = ("calibrate", "plan", "slice", "recover", "carry")
TURNS = 3
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
SEVEN_B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}
SHARD_BYTES = 2 << 30
Row = dict[str, Any]
INDEX = "model.safetensors.index.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seven-b", action="store_true")
    parser.add_argument("--layers", type=int, default=SEVEN_B["num_hidden_layers"])
    parser.add_argument("--work", type=Path, help="where bases lie and what was measured")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        figures, rows = measured(options.work or Path(temporary), options)
    print(report.write("memory", figures, rows, options.json))


def measured(work: Path, options: argparse.Namespace) -> tuple[dict[str, Any], list[Row]]:
    """Figures and rows of all that the options ask for, each case in a folder of its own."""
    figures: dict[str, Any] = {}
    rows: list[Row] = []
    if not options.quick:
        flap = {"criterion": {"name": "fluctuation"}, "bias_compensation": True, "recovery": []}
        bundled = run_bundled("bundled", work)
        bundled_flap = run_bundled("bundled, fluctuation", work, **flap)
        rows += bundled + bundled_flap
        figures["bundled_seconds"] = seconds(bundled)
        figures["bundled_vs_fluctuation"] = round(seconds(bundled) / seconds(bundled_flap), 2)
    shallow, deep, sequences, turns = (2, 8, 4, 1) if options.quick else (8, 64, 16, TURNS)
    peaks: dict[int, list[float]] = {shallow: [], deep: []}
    for turn in range(turns):
        for depth, found in peaks.items():
            case = f"{depth} layers, turn {turn}"
            rows += run_small(case, work, depth, sequences)
            found.append(peak(rows, case))
    median = {depth: statistics.median(found) for depth, found in peaks.items()}
    figures["rss_depth_ratio"] = round(median[deep] / median[shallow], 3)
    if options.seven_b:
        case = f"7B, {options.layers} layers"
        rows += run_seven_b(case, work, options.layers)
        figures["rss_7b_gib"] = round(peak(rows, case) / 1024, 2)
    return figures, rows


def peak(rows: Sequence[Row], case: str) -> float:
    """The most that a stage which makes the artifact held, in MiB."""
    return max(r["peak_mib"] for r in rows if r["case"] == case and r["stage"] in MAKING)


def seconds(rows: Sequence[Row]) -> float:
    """Of all stages, one after the other."""
    return round(sum(row["seconds"] for row in rows), 1)


def run_small(case: str, work: Path, depth: int, sequences: int) -> list[Row]:
    """Prune a random base of so many layers; a row per stage."""
    base = write_base(work / f"{depth} layers", {**SMALL, "num_hidden_layers": depth})
    asked = spec(base, sequences=sequences, length=256)
    return run_stages(case, asked, work / case, MAKING, threads=1)


def run_seven_b(case: str, work: Path, layers: int) -> list[Row]:
    """Prune a random base of Llama-7B's shape with so many layers; a row per stage."""
    base = write_base(work / case / "base", {**SEVEN_B, "num_hidden_layers": layers})
    asked = spec(base, sequences=8, length=128)
    return run_stages(case, asked, work / case, MAKING, threads=1)


def run_bundled(case: str, work: Path, **changes: Any) -> list[Row]:
    """Prune the bundled model and report; a row per stage."""
    asked = spec(DEMO / "base", sequences=128, length=256, **changes)
    stages = stages_of(asked.recipe)[:-1]  # nothing is published
    return run_stages(case, asked, work / case, stages, threads=2)


def run_stages(
    case: str, asked: PruneSpec, work: Path, stages: Sequence[str], threads: int
) -> list[Row]:
    work.mkdir(parents=True, exist_ok=True)
    (work / "spec.json").write_text(asked.model_dump_json())
    rows = []
    for stage in stages:
        row = work / f"{stage}.row.json"
        if not row.is_file():
            row.write_text(json.dumps({"case": case, **run_stage(stage, work, threads)}))
        rows.append(json.loads(row.read_text()))
        print(rows[-1], flush=True)
    return rows


def run_stage(stage: str, work: Path, threads: int) -> dict[str, Any]:
    """What a stage takes: seconds, those of all cores together, and the peak of its process."""
    command = [sys.executable, "-m", "pruning.jobs.stage", stage, str(work)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    started, busy = time.monotonic(), cpu_seconds()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    last = json.loads(done.stdout.decode().strip().split("\n")[-1])
    return {
        "stage": stage,
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(cpu_seconds() - busy, 1),
        "peak_mib": round(last["peak_rss_bytes"] / 2**20, 1),
    }


def cpu_seconds() -> float:
    """Of all processes that were started here and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def spec(base: Path, sequences: int, length: int, **changes: Any) -> PruneSpec:
    cut = {"sequences": sequences, "length": length}
    recipe = Recipe.model_validate(
        {
            "name": "memory",
            "base": "base",
            "target": 0.25,
            "criterion": {"name": "obs"},
            "recovery": [{"name": "closed_form"}],
            "calibration": {"file": "text/calibration.txt", **cut},
            "evaluation": {"file": "text/evaluation.txt", **cut},
            **changes,
        }
    )
    calibration, evaluation = (DEMO / text.file for text in (recipe.calibration, recipe.evaluation))
    return PruneSpec(
        recipe=recipe, base=base, adapters={}, calibration=calibration, evaluation=evaluation
    )


def write_base(directory: Path, shape: Mapping[str, int]) -> Path:
    """A random fp16 Llama with the bundled tokenizer, unless it is there; its directory."""
    if (directory / INDEX).is_file():
        return directory
    config = json.loads((DEMO / "base" / "config.json").read_text())
    config |= {"head_dim": shape["hidden_size"] // shape["num_attention_heads"], **shape}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((DEMO / "base" / name).read_bytes())
    generator = torch.Generator().manual_seed(0)

    def entry(name: str, dims: tuple[int, ...]) -> Entry:
        def make() -> torch.Tensor:
            if len(dims) == 1:
                return torch.ones(dims, dtype=torch.float16)
            return (torch.randn(dims, generator=generator) * 0.02).half()

        return Entry(name, torch.float16, dims, make)

    entries = [entry(name, dims) for name, dims in expected(Geometry.from_config(config))]
    write_shards(directory, entries)
    return directory


def write_shards(directory: Path, entries: Sequence[Entry]) -> None:
    """Weights in files of about SHARD_BYTES and the index that names them, as hubs have them."""
    shards: list[list[Entry]] = [[]]
    for entry in entries:
        if shards[-1] and sum(e.bytes for e in shards[-1]) + entry.bytes > SHARD_BYTES:
            shards.append([])
        shards[-1].append(entry)
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write(directory / name, shard, lambda fraction: None)
        weight_map |= {entry.name: name for entry in shard}
    index = {"metadata": {"total_size": sum(e.bytes for e in entries)}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index))


if __name__ == "__main__":
    main()
