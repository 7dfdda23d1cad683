"""Memory and time of pruning jobs: peak resident memory of the stages, each in its own process.

Usage: python benchmarks/memory.py [--quick] [--seven-b] [--json FILE]

rss_depth_ratio is the peak of all stages that make the artifact (obs, refit in closed form) on a
random base of 64 layers over that on one of 8 layers of the same shape; the evaluation, which runs
both bases whole, is left out of it and stands in the rows.  bundled_seconds is the bundled model
without adapters, one-shot and with its report, on two threads.  rss_7b_gib, only with --seven-b, is
the same peak on a random fp16 checkpoint of Llama-7B's shape; it takes hours on a few cores and
40 GB of disk.  --quick takes 4 and 16 layers and leaves the bundled model out.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import report
import torch

from pruning.geometry import Geometry
from pruning.recipe import PruneSpec, Recipe
from pruning.weights.tensors import expected
from pruning.weights.writer import Entry, write

DEMO = Path(__file__).parent.parent / "deploy" / "demo"
MAKING = ("calibrate", "plan", "slice", "recover", "carry")
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
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seven-b", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    peaks = []
    for depth in (4, 16) if options.quick else (8, 64):
        rows += run(f"{depth} layers", {**SMALL, "num_hidden_layers": depth}, 16, evaluated=True)
        peaks.append(peak(rows, f"{depth} layers"))
    figures["rss_depth_ratio"] = round(peaks[1] / peaks[0], 3)
    if not options.quick:
        figures["bundled_seconds"], bundled = run_bundled()
        rows += bundled
    if options.seven_b:
        rows += run("7B", SEVEN_B, 64, evaluated=False)
        figures["rss_7b_gib"] = round(peak(rows, "7B") / 1024, 2)
    print(report.write("memory", figures, rows, options.json))


def peak(rows: Sequence[dict[str, Any]], case: str) -> float:
    """The most that a stage which makes the artifact held, in MiB."""
    return max(r["peak_mib"] for r in rows if r["case"] == case and r["stage"] in MAKING)


def run(case: str, shape: dict[str, int], sequences: int, evaluated: bool) -> list[dict[str, Any]]:
    """Prune a random base of a shape; a row per stage."""
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        write_base(work / "base", shape)
        stages = (*MAKING, "evaluate") if evaluated else MAKING
        return run_stages(case, spec(work / "base", sequences), work, stages, threads=1)


def run_bundled() -> tuple[float, list[dict[str, Any]]]:
    """Seconds of the bundled model's job, and its rows."""
    with tempfile.TemporaryDirectory() as directory:
        asked = spec(DEMO / "base", 128)
        started = time.monotonic()
        rows = run_stages("bundled", asked, Path(directory), (*MAKING, "evaluate"), threads=2)
        return round(time.monotonic() - started, 1), rows


def run_stages(
    case: str, asked: PruneSpec, work: Path, stages: Sequence[str], threads: int
) -> list[dict[str, Any]]:
    (work / "spec.json").write_text(asked.model_dump_json())
    rows = []
    for stage in stages:
        started = time.monotonic()
        command = [sys.executable, "-m", "pruning.jobs.stage", stage, str(work)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        last = json.loads(done.stdout.decode().strip().split("\n")[-1])
        rows.append(
            {
                "case": case,
                "stage": stage,
                "seconds": round(time.monotonic() - started, 1),
                "peak_mib": round(last["peak_rss_bytes"] / 2**20, 1),
            }
        )
        print(rows[-1], flush=True)
    return rows


def spec(base: Path, sequences: int) -> PruneSpec:
    recipe = Recipe.model_validate(
        {
            "name": "memory",
            "base": "base",
            "target": 0.25,
            "criterion": {"name": "obs"},
            "recovery": [{"name": "closed_form"}],
            "calibration": {"file": "text/calibration.txt", "sequences": sequences},
            "evaluation": {"file": "text/evaluation.txt", "sequences": sequences},
        }
    )
    calibration, evaluation = (DEMO / text.file for text in (recipe.calibration, recipe.evaluation))
    return PruneSpec(
        recipe=recipe, base=base, adapters={}, calibration=calibration, evaluation=evaluation
    )


def write_base(directory: Path, shape: dict[str, int]) -> None:
    """A random fp16 Llama with the bundled tokenizer, written tensor by tensor."""
    config = json.loads((DEMO / "base" / "config.json").read_text())
    config |= {"head_dim": shape["hidden_size"] // shape["num_attention_heads"], **shape}
    directory.mkdir()
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
    write(directory / "model.safetensors", entries, lambda fraction: None)


if __name__ == "__main__":
    main()
