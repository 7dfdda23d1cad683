"""Speed of what comes out: vLLM's decoding of a base cut to one half, against the dense one.

Usage: python benchmarks/speed_slim.py [--quick] [--dtype DTYPE] [--work DIRECTORY] [--json FILE]

The dense base has TinyLlama-1.1B's shape and random weights; a job (criterion `magnitude`) cuts
half of its body, the same in every layer (`uniform`) and each layer for itself (`per_layer`), and
carries 16 random adapters (rank 8, all seven linears).  Dense and slim base are served at once by
two engines with the product's own settings, and answer by turns, so that only one works at a time:
on a CPU in float32, on a GPU in bfloat16, compiled and with captured graphs, in more and longer
turns and sixteen tokens to an event, for sending them is slower than making them there.  What a GPU
shows goes to results/speed_slim_GPU.json.
Decoded tokens per second are counted from when every request of a batch has its first token until
one has its last; a row is the median of the turns.  `alone` no request names an adapter; with
`16 adapters` sixteen requests name one each.

decode50_speedup is slim over dense, uniform, as the geometric mean over the batch sizes; the
figures with `per_layer` are the same for that cut.  kv_bytes_ratio is bytes of keys and values per
token, dense over slim.  --quick has four layers and the bundled vocabulary, and no `per_layer`.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import report
import torch
from memory import DEMO, run_stage, write_base

from pruning.adapters.algebra import Bag, adapter_of
from pruning.adapters.atoms import write as write_adapter
from pruning.architectures.llama import LINEARS
from pruning.geometry import Geometry
from pruning.recipe import PruneSpec, Recipe
from service.engines import Engine, Engines
from service.settings import Settings
from service.vllm_command import on_gpu

SHAPE = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "num_hidden_layers": 22,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}
QUICK_SHAPE = {**SHAPE, "num_hidden_layers": 4, "vocab_size": 4096}
ADAPTERS, RANK = 16, 8
BATCHES = (1, 8)  # of requests without an adapter
PROMPT = list(range(100, 116))
GPU = on_gpu()
TOKENS = 256 if GPU else 16  # of an answer
TURNS = 9 if GPU else 3
ALLOCATORS = {"uniform": "uniform", "per_layer": "global"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    dtype = "bfloat16" if GPU else "float32"
    parser.add_argument("--dtype", default=dtype, help="of the engines")
    parser.add_argument("--work", type=Path, help="where bases lie, and are found again")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    shape = QUICK_SHAPE if options.quick else SHAPE
    exports = ("uniform",) if options.quick else tuple(ALLOCATORS)
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(exist_ok=True)
        bases = {"dense": dense(work, shape)}
        bases |= {export: slim(work, export) for export in exports}
        settings = Settings(
            home=work,
            engine_max_loras=ADAPTERS,
            engine_max_lora_rank=RANK,
            engine_args=f"--dtype {options.dtype}" + " --stream-interval 16" * GPU,
        )
        turns = 2 if options.quick else TURNS
        rows = asyncio.run(compare(settings, bases, turns, options.json))
    print(json.dumps(figures(rows), indent=2))


def dense(work: Path, shape: dict[str, Any]) -> Path:
    """A directory with a random base in `base` and its adapters."""
    directory = work / "dense"
    if not directory.is_dir():
        draft = work / "dense.draft"
        write_base(draft / "base", shape)
        geometry = Geometry.of(draft / "base")
        generator = torch.Generator().manual_seed(1)
        for number in range(ADAPTERS):
            adapter = adapter_of(random_bags(geometry, generator))
            write_adapter(adapter, draft / "adapters" / f"a{number}", geometry, "dense")
        draft.rename(directory)
    return directory


def random_bags(geometry: Geometry, generator: torch.Generator) -> dict[tuple[int, str], Bag]:
    """An adapter on every linear."""
    bags = {}
    for layer in range(len(geometry.layers)):
        for linear in LINEARS:
            shape = geometry.linear_shape(layer, linear)
            assert shape is not None
            down, up = (torch.randn(RANK, side, generator=generator) for side in reversed(shape))
            bags[layer, linear] = Bag(0.01 * down, 0.01 * up.T)
    return bags


def slim(work: Path, export: str) -> Path:
    """A directory with the base cut to one half, and the adapters carried through that cut."""
    directory = work / export
    if not directory.is_dir():
        job = work / f"{export}.job"
        job.mkdir(exist_ok=True)
        (job / "spec.json").write_text(spec(work / "dense", export).model_dump_json())
        for stage in ("calibrate", "plan", "slice", "carry"):
            print(export, run_stage(stage, job, threads=1), flush=True)
        draft = work / f"{export}.draft"
        draft.mkdir()
        (job / "slice" / "model").rename(draft / "base")
        (job / "carry" / "adapters").rename(draft / "adapters")
        draft.rename(directory)
    return directory


def spec(dense: Path, export: str) -> PruneSpec:
    recipe = Recipe.model_validate(
        {
            "name": "half",
            "base": "dense",
            "target": 0.5,
            "criterion": {"name": "magnitude"},
            "allocator": {"name": ALLOCATORS[export]},
            "ffn_multiple": 64,
            "export": export,
            "calibration": {"file": "text/calibration.txt", "sequences": 1},
            "evaluation": {"file": "text/evaluation.txt", "sequences": 1},
        }
    )
    return PruneSpec(
        recipe=recipe,
        base=dense / "base",
        adapters={path.name: path for path in sorted((dense / "adapters").iterdir())},
        calibration=DEMO / recipe.calibration.file,
        evaluation=DEMO / recipe.evaluation.file,
    )


async def compare(
    settings: Settings, bases: dict[str, Path], turns: int, path: Path | None
) -> list[dict[str, Any]]:
    """Each slim base against the dense one: a row per cut, load and batch, written as it comes."""
    rows: list[dict[str, Any]] = []
    name = report.with_gpu("speed_slim") if GPU else "speed_slim"
    engines = Engines(settings)
    loads = [("alone", batch) for batch in BATCHES] + [(f"{ADAPTERS} adapters", ADAPTERS)]
    try:
        for cut in [name for name in bases if name != "dense"]:
            pair = {"dense": bases["dense"], cut: bases[cut]}
            await serve(engines, pair)
            for load, batch in loads:
                rows.append(await row(engines, pair, cut, load, batch, turns))
                print(rows[-1], flush=True)
                report.write(name, figures(rows), rows, path)
    finally:
        await engines.stop()
    return rows


async def serve(engines: Engines, bases: dict[str, Path]) -> None:
    """Serve these bases with their adapters, each of which has answered once."""
    await engines.reconcile({name: directory / "base" for name, directory in bases.items()})
    async with asyncio.timeout(400):
        while not all(map(engines.ready, bases)):
            await asyncio.sleep(0.2)
    for name, directory in bases.items():
        for path in sorted((directory / "adapters").iterdir()):
            await engines.get(name).ensure_adapter(f"{name}+{path.name}@0", path)
        for names in ([name], adapters_of(name)):
            await decoding(engines.get(name), names, 3)


def adapters_of(base: str) -> list[str]:
    return [f"{base}+a{number}@0" for number in range(ADAPTERS)]


async def row(
    engines: Engines, pair: dict[str, Path], cut: str, load: str, batch: int, turns: int
) -> dict[str, Any]:
    """Both bases by turns with one load: medians, and how they compare."""
    names = {base: [base] * batch if load == "alone" else adapters_of(base) for base in pair}
    found: dict[str, list[float]] = {base: [] for base in pair}
    for _ in range(turns):
        for base in pair:
            found[base].append(await decoding(engines.get(base), names[base], TOKENS))
    dense, slim = (statistics.median(found[base]) for base in pair)
    geometries = [Geometry.of(directory / "base") for directory in pair.values()]
    return {
        "cut": cut,
        "load": load,
        "batch": batch,
        "turns": turns,
        "dense_tokens_per_second": round(dense, 2),
        "slim_tokens_per_second": round(slim, 2),
        "speedup": round(slim / dense, 3),
        "dense_parameters": geometries[0].parameters,
        "slim_parameters": geometries[1].parameters,
        "kv_bytes_ratio": round(kv_values(geometries[0]) / kv_values(geometries[1]), 3),
    }


def kv_values(geometry: Geometry) -> int:
    """Keys and values of one token."""
    return 2 * geometry.head_dim * sum(layer.num_kv_heads for layer in geometry.layers)


async def decoding(engine: Engine, names: list[str], tokens: int) -> float:
    """Tokens per second of requests sent at once, while all of them are being decoded."""
    arrivals = await asyncio.gather(*(answer(engine, name, tokens) for name in names))
    begin, end = max(times[0] for times in arrivals), min(times[-1] for times in arrivals)
    return sum(begin < t <= end for times in arrivals for t in times) / (end - begin)


async def answer(engine: Engine, name: str, tokens: int) -> list[float]:
    """When each token of an answer came."""
    body = {"model": name, "prompt": PROMPT, "max_tokens": tokens, "temperature": 0}
    body |= {"ignore_eos": True, "return_token_ids": True, "stream": True}
    times: list[float] = []
    async with engine.client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                choice = json.loads(line.removeprefix("data: "))["choices"][0]
                times += [time.monotonic()] * len(choice["token_ids"])
    assert len(times) == tokens
    return times


def figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Of the rows there are: per cut and load the geometric mean over the batch sizes."""
    found: dict[str, list[float]] = {}
    for row in rows:
        cut = "" if row["cut"] == "uniform" else f"_{row['cut']}"
        load = "" if row["load"] == "alone" else f"_{row['load'].replace(' ', '_')}"
        found.setdefault(f"decode50_speedup{load}{cut}", []).append(row["speedup"])
        found[f"kv_bytes_ratio{cut}"] = [row["kv_bytes_ratio"]]
    return {name: round(statistics.geometric_mean(values), 2) for name, values in found.items()}


if __name__ == "__main__":
    main()
