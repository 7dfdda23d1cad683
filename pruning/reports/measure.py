"""Fills a report: the dense and the slim base, each alone and with every adapter."""

import importlib.metadata
import json
import platform
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pruning import evaluation
from pruning.adapters.peft_format import EVALUATION
from pruning.evaluation import Example, Windows
from pruning.geometry import Geometry
from pruning.jobs.outputs import slim_base
from pruning.methods import resolve
from pruning.methods.entry import Kind, MethodEntry
from pruning.plan import Plan
from pruning.progress import Progress, part
from pruning.recipe import Method, PruneSpec, Recipe
from pruning.reports.report import (
    AdapterReport,
    BaseReport,
    Quality,
    Report,
    StageReport,
    cite,
    layers_of,
    size_of,
    timings,
)
from pruning.text import load_tokenizer
from pruning.weights.checkpoint import Checkpoint

PACKAGES = ("graftwork", "torch", "transformers", "peft", "safetensors", "numpy")
EARLIER_STAGES = ("schedule", "calibrate", "plan", "slice", "recover", "carry")


def measure(spec: PruneSpec, work: Path, plan: Plan, progress: Progress) -> Report:
    """Run both bases over the held-out text, and over the rows of each adapter that has some."""
    started = time.monotonic()
    dense, model = Checkpoint(spec.base), slim_base(spec, work)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    slim = Geometry.from_config(config)
    data = _data(spec, dense)
    carried = {name: work / "carry" / "adapters" / name for name in spec.adapters}
    before = _run(spec.base, data, spec.adapters, part(progress, 0, 0.6))
    after = _run(model, data, carried, part(progress, 0.6, 1))
    bodies = slim.body_parameters, dense.geometry.body_parameters
    return Report(
        recipe=spec.recipe,
        export=config["model_type"],
        removed_fraction=1 - bodies[0] / bodies[1],
        dense=BaseReport(size=size_of(dense.geometry, dense.weight_bytes), quality=before.quality),
        slim=BaseReport(
            size=size_of(slim, (model / "model.safetensors").stat().st_size), quality=after.quality
        ),
        adapters=_adapters(spec, data, before, after),
        layers=layers_of(dense.geometry, plan),
        stages=(*timings(work, EARLIER_STAGES), _own_timing(started)),
        evaluation_tokens=data.text.num_tokens,
        methods=tuple(map(cite, _methods(spec.recipe))),
        versions={"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in PACKAGES},
    )


def _methods(recipe: Recipe) -> list[MethodEntry]:
    """What the recipe names, the schedule only if it has more to say than "at once"."""
    named: list[tuple[Kind, Method]] = [
        ("criterion", recipe.criterion),
        ("allocator", recipe.allocator),
        *(("recovery", method) for method in recipe.recovery),
    ]
    if recipe.schedule.name != "one_shot":
        named.append(("schedule", recipe.schedule))
    return [resolve(kind, method)[0] for kind, method in named]


@dataclass(frozen=True)
class _Data:
    """What both bases are run over."""

    text: Windows
    rows: Mapping[str, list[Example]]  # by adapter


@dataclass(frozen=True)
class _Run:
    """What a base did on the data; losses by adapter, the base's own and the adapter's."""

    quality: Quality
    base_losses: Mapping[str, float]
    adapter_losses: Mapping[str, float]


def _data(spec: PruneSpec, dense: Checkpoint) -> _Data:
    tokenizer = load_tokenizer(spec.base)
    longest = dense.config.get("max_position_embeddings") or spec.recipe.evaluation.length
    return _Data(
        evaluation.windows(tokenizer, spec.evaluation, spec.recipe.evaluation),
        {
            name: evaluation.rows(tokenizer, path / EVALUATION, longest, f"adapters.{name}")
            for name, path in sorted(spec.adapters.items())
            if (path / EVALUATION).is_file()
        },
    )


def _run(base: Path, data: _Data, adapters: Mapping[str, Path], progress: Progress) -> _Run:
    model = evaluation.load(base)
    share = 1 / (1 + 2 * len(data.rows))
    found = evaluation.perplexity(model, data.text, part(progress, 0, share))
    base_losses, adapter_losses = {}, {}
    for i, (name, examples) in enumerate(data.rows.items()):
        start = share * (1 + 2 * i)
        base_losses[name] = evaluation.completion_loss(
            model, examples, part(progress, start, start + share)
        )
        adapted = evaluation.with_adapter(model, adapters[name])
        adapter_losses[name] = evaluation.completion_loss(
            adapted, examples, part(progress, start + share, start + 2 * share)
        )
        model = adapted.unload()
    quality = Quality(token_perplexity=found.token, word_perplexity=found.word)
    return _Run(quality, base_losses, adapter_losses)


def _adapters(spec: PruneSpec, data: _Data, before: _Run, after: _Run) -> tuple[AdapterReport, ...]:
    return tuple(
        AdapterReport(
            name=name,
            rows=len(data.rows.get(name, ())),
            dense_base=before.base_losses.get(name),
            dense_adapter=before.adapter_losses.get(name),
            slim_base=after.base_losses.get(name),
            slim_adapter=after.adapter_losses.get(name),
        )
        for name in sorted(spec.adapters)
    )


def _own_timing(started: float) -> StageReport:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    return StageReport(
        stage="evaluate", seconds=time.monotonic() - started, peak_rss_bytes=peak * unit
    )
