"""First light: how long the two commands take, and whether what they promise holds.

Usage: python benchmarks/first_light.py [--quick] [--json FILE]

Prunes the bundled model with every irregularity that a per-layer artifact can have (two head
counts, three FFN widths, a layer without attention, one without MLP, an o_proj bias), serves it
with its adapters and compares greedy tokens with transformers', one by one and in mixed batches;
kills a worker in the middle of a stage and compares the digests; times a cancellation, the demo,
the tests and the import of the gateway.  --quick leaves the tests out and takes fewer prompts and
tokens.
"""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import report
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from pruning.adapters.peft_format import read_adapter
from pruning.digest import file_digest, tree_digest
from pruning.geometry import Geometry
from pruning.models.modeling import register
from pruning.pipeline import STAGES
from pruning.recipe import PruneSpec, Recipe
from service.catalog import Catalog
from service.engines import Engine, Engines
from service.job_objects import Job
from service.jobs import Jobs
from service.settings import Settings

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "deploy" / "demo"
IRREGULAR = {  # beside what the allocator makes: different head counts and FFN widths
    "name": "irregular",
    "criterion": {"name": "fluctuation"},
    "allocator": {"name": "global"},
    "blocks": {"attention": 1, "mlp": 1},
    "bias_compensation": True,
    "export": "per_layer",
}

Tokens = dict[str, list[list[int]]]  # by adapter ("" for the bare base), one list per prompt


def recipe(**changes: Any) -> Recipe:
    """The bundled recipe with some fields changed."""
    return Recipe.model_validate(yaml.safe_load((DEMO / "recipe.yaml").read_text()) | changes)


def spec(recipe: Recipe) -> PruneSpec:
    """The recipe with its names resolved to the bundled files."""
    return PruneSpec(
        recipe=recipe,
        base=DEMO / "base",
        adapters={path.name: path for path in sorted((DEMO / "adapters").iterdir())},
        calibration=DEMO / recipe.calibration.file,
        evaluation=DEMO / recipe.evaluation.file,
    )


def prune(work: Path) -> tuple[Path, dict[str, Path]]:
    """Make the irregular slim base; its model directory, and those of its adapters by name."""
    irregular = spec(recipe(**IRREGULAR))
    for stage in ("calibrate", "plan", "slice", "carry"):
        STAGES[stage](irregular, work, lambda fraction, message: None)
    config = json.loads((work / "slice" / "model" / "config.json").read_text())
    assert is_irregular(Geometry.from_config(config)), config
    adapters = {path.name: path for path in sorted((work / "carry" / "adapters").iterdir())}
    return work / "slice" / "model", adapters


def is_irregular(slim: Geometry) -> bool:
    """Whether it has everything that the engine must get right, as the docstring above promises."""
    layers = slim.layers
    return (
        len({layer.num_heads for layer in layers if layer.num_heads}) >= 2
        and len({layer.intermediate_size for layer in layers if layer.intermediate_size}) >= 3
        and any(not layer.num_heads for layer in layers)
        and any(not layer.intermediate_size for layer in layers)
        and any(layer.o_bias for layer in layers)
    )


def prompts(model: Path, count: int) -> list[list[int]]:
    """Tokens of held-out prompts, taken from the adapters in turn."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    held_out = []
    for path in sorted((DEMO / "adapters").glob("*/eval.jsonl")):
        rows = [json.loads(line) for line in path.read_text().strip().split("\n")]
        held_out.append([row["prompt"] or row["completion"][:40] for row in rows])
    texts = [held_out[i % len(held_out)][i // len(held_out)] for i in range(count)]
    return [tokenizer(text)["input_ids"] for text in texts]


@torch.inference_mode()
def reference(model: Path, adapters: Mapping[str, Path], ids: list[list[int]], n: int) -> Tokens:
    """What transformers generates greedily in float32, alone for each prompt."""
    register()
    tokens: Tokens = {}
    for name, path in {"": None, **adapters}.items():
        network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        if path is not None:
            network = PeftModel.from_pretrained(network, path)
        tokens[name] = [greedy(network, prompt, n) for prompt in ids]
    return tokens


def greedy(network: Any, prompt: list[int], n: int) -> list[int]:
    """The n likeliest next tokens, one after the other; the end of the text does not stop them."""
    tokens: list[int] = []
    inputs, cache = torch.tensor([prompt]), None
    for _ in range(n):
        output = network(input_ids=inputs, past_key_values=cache, use_cache=True)
        tokens.append(int(output.logits[0, -1].argmax()))
        inputs, cache = torch.tensor([tokens[-1:]]), output.past_key_values
    return tokens


async def served(
    model: Path, adapters: Mapping[str, Path], ids: list[list[int]], n: int
) -> tuple[Tokens, Tokens]:
    """What an engine generates: request after request, and all at once, adapters mixed."""
    with tempfile.TemporaryDirectory() as home:
        engines = Engines(Settings(home=Path(home)))
        try:
            await engines.reconcile({"slim": model})
            async with asyncio.timeout(300):
                while not engines.ready("slim"):
                    await asyncio.sleep(0.2)
            engine = engines.get("slim")
            for name, path in adapters.items():
                await engine.ensure_adapter(f"slim+{name}@0", path)
            names = ("", *adapters)
            alone = {name: [await complete(engine, name, p, n) for p in ids] for name in names}
            rows = [(name, prompt) for prompt in ids for name in names]
            answers = await asyncio.gather(*(complete(engine, *row, n) for row in rows))
        finally:
            await engines.stop()
    return alone, {name: answers[i :: len(names)] for i, name in enumerate(names)}


async def complete(engine: Engine, adapter: str, prompt: list[int], n: int) -> list[int]:
    body = {"model": f"slim+{adapter}@0" if adapter else "slim", "prompt": prompt}
    body |= {"max_tokens": n, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    answer = await engine.client.post("/v1/completions", json=body)
    answer.raise_for_status()
    return list(answer.json()["choices"][0]["token_ids"])


def mismatches(expected: list[list[int]], found: list[list[int]]) -> int:
    """How many tokens differ."""
    pairs = zip(sum(expected, []), sum(found, []), strict=True)
    return sum(one != other for one, other in pairs)


def compare_tokens(quick: bool) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Served tokens against transformers': the figures, and a row per adapter."""
    count, n = (8, 16) if quick else (32, 32)
    with tempfile.TemporaryDirectory() as work:
        model, adapters = prune(Path(work))
        ids = prompts(model, count)
        expected = reference(model, adapters, ids, n)
        alone, mixed = asyncio.run(served(model, adapters, ids, n))
    rows = [
        {
            "adapter": name or None,
            "prompts": count,
            "tokens": count * n,
            "token_mismatches": mismatches(expected[name], alone[name]),
            "mixed_batch_mismatches": mismatches(expected[name], mixed[name]),
        }
        for name in expected
    ]
    sums = {
        figure: sum(int(row[figure]) for row in rows)
        for figure in ("token_mismatches", "mixed_batch_mismatches")
    }
    return {"prompts": count, **sums}, rows


def resume_digest_equal() -> bool:
    """Whether a job whose worker is killed in the middle of a stage makes the same artifact."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        return digest_of_a_job(Path(one), kill=False) == digest_of_a_job(Path(other), kill=True)


def digest_of_a_job(home: Path, kill: bool) -> str:
    """Run the bundled recipe in worker processes; with `kill`, kill -9 the first in `calibrate`."""
    settings = Settings(home=home, database_url=None)
    catalog = Catalog(settings.database)
    jobs = Jobs(settings, catalog)
    job = jobs.create(registered(catalog))
    if kill:
        with worker(home):
            job = wait(jobs, job, lambda job: job.stage == "calibrate" and job.progress > 0)
        assert not job.has_ended
    with worker(home):
        job = wait(jobs, job, lambda job: job.has_ended)
    assert job.result is not None, job.error
    jobs.close()
    catalog.close()
    return job.result.artifact


def cancel_seconds() -> float:
    """From the request to cancel a job in `calibrate` until its process and its files are gone."""
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        settings = Settings(home=home, database_url=None)
        catalog = Catalog(settings.database)
        jobs = Jobs(settings, catalog)
        job = jobs.create(registered(catalog))
        with worker(home):
            wait(jobs, job, lambda job: job.stage == "calibrate" and job.progress > 0)
            work = settings.jobs / job.id
            started = time.monotonic()
            jobs.cancel(job.id)
            while work.exists() or _runs_in(work):
                time.sleep(0.02)
            took = time.monotonic() - started
        jobs.close()
        catalog.close()
    return round(took, 2)


def _runs_in(work: Path) -> bool:
    """Whether a process names the work directory of a job on its command line."""
    needle = os.fsencode(work)
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and needle in (entry / "cmdline").read_bytes():
                return True
    return False


def registered(catalog: Catalog) -> Recipe:
    """The bundled recipe, with everything that it names in the catalog."""
    bundled = spec(recipe())
    catalog.add_base("demo", bundled.base, tree_digest(bundled.base), serve=False)
    for name, path in bundled.adapters.items():
        info = read_adapter(path, catalog.base("demo").geometry)
        catalog.add_adapter("demo", name, path, info.digest, info.rank)
    texts = {}
    for purpose in ("calibration", "evaluation"):
        path = getattr(bundled, purpose)
        size = path.stat().st_size
        file = catalog.add_file(path, file_digest(path), path.name, purpose, size)
        texts[purpose] = {**getattr(bundled.recipe, purpose).model_dump(), "file": file.id}
    texts["evaluation"]["sequences"] = 8  # what is measured does not enter the digest
    return recipe(**texts)


@contextmanager
def worker(home: Path) -> Iterator[None]:
    """A worker process that is killed at the end of the block."""
    command = [sys.executable, "-P", "-m", "service.cli", "worker"]
    environment = {"GRAFTWORK_HOME": str(home), "GRAFTWORK_STAGE_THREADS": "1"}
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def wait(jobs: Jobs, job: Job, condition: Callable[[Job], bool], seconds: float = 900) -> Job:
    deadline = time.monotonic() + seconds
    while not condition(job := jobs.get(job.id)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{job.id} is {job.status} in {job.stage} after {seconds:.0f} s")
        time.sleep(0.05)
    return job


def serve_seconds() -> float:
    """From `graftwork demo` in an empty home to the first answer of an adapter on the slim base."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as home:
        return seconds(
            [sys.executable, "-P", "-m", "service.cli", "demo", "--once"],
            GRAFTWORK_HOME=home,
            GRAFTWORK_PORT=str(port),
        )


def seconds(command: list[str], **environment: str) -> float:
    """How long a command takes that has to succeed."""
    started = time.monotonic()
    subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=True)
    return round(time.monotonic() - started, 1)


def gateway_import_seconds() -> float:
    """CPU seconds of a Python that imports the gateway: the least of three."""

    def once() -> float:
        process = subprocess.Popen([sys.executable, "-P", "-c", "import service.app"])
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return usage.ru_utime + usage.ru_stime

    return round(min(once() for _ in range(3)), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="no tests, fewer prompts and tokens")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results go")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    figures["gateway_import_seconds"] = gateway_import_seconds()
    tokens, rows = compare_tokens(options.quick)
    figures |= tokens
    print(json.dumps(figures, indent=2), flush=True)
    figures["resume_digest_equal"] = resume_digest_equal()
    figures["cancel_seconds"] = cancel_seconds()
    figures["serve_seconds"] = serve_seconds()
    if not options.quick:
        figures["test_seconds"] = seconds(["make", "test"])
    print(json.dumps(figures, indent=2))
    if options.json or not options.quick:
        print(report.write("first_light", figures, rows, options.json))


if __name__ == "__main__":
    main()
