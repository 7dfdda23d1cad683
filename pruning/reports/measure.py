"""Fills a report: the dense and the slim base, each alone and with every adapter.

A kill costs the measurement that it interrupted.
"""

import importlib.metadata
import json
import math
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from pruning import evaluation
from pruning.adapters.mounted import mounted
from pruning.adapters.peft_format import EVALUATION
from pruning.evaluation import Example, Windows
from pruning.geometry import Geometry
from pruning.hidden import widened
from pruning.jobs.outputs import REFERENCE, shared, slim_base, timed
from pruning.latency import decode_ms
from pruning.methods import resolve
from pruning.methods.entry import Kind, MethodEntry
from pruning.plan import Plan, Widths
from pruning.progress import Progress, part
from pruning.recipe import Method, PruneSpec, Recipe
from pruning.reports.departure import continuations, divergence, probes, record
from pruning.reports.report import (
    AdapterReport,
    BaseReport,
    LatencyReport,
    Quality,
    Report,
    Sample,
    StageReport,
    cite,
    layers_of,
    rounds_of,
    size_of,
    timings,
    warnings_of,
)
from pruning.text import Tokenizer, load_tokenizer
from pruning.weights.checkpoint import Checkpoint

PACKAGES = ("graftwork", "torch", "transformers", "peft", "safetensors", "numpy")
PROBES = "probes"  # what the dense base makes of them
ABREAST = 8  # adapters that are measured together, and are in memory
EARLIER_STAGES = ("schedule", "calibrate", "plan", "slice", "recover", "carry")


def measure(spec: PruneSpec, work: Path, plan: Plan, state: Path, progress: Progress) -> Report:
    """Run both bases over the held-out text, and over the rows of each adapter that has some.

    What is in `state` survives a kill; of the dense base nothing is measured that is known.
    """
    started = time.monotonic()
    dense, model = Checkpoint(spec.base), slim_base(spec, work)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    slim = Geometry.from_config(config)
    data = _data(spec, dense)
    before, after = _runs(spec, work, plan, data, state, progress)
    delta_nats = math.log(after.quality.token_perplexity / before.quality.token_perplexity)
    bodies = slim.body_parameters, dense.geometry.body_parameters
    return Report(
        recipe=spec.recipe,
        export=config["model_type"],
        removed_fraction=1 - bodies[0] / bodies[1],
        dense=BaseReport(size=size_of(dense.geometry, dense.weight_bytes), quality=before.quality),
        slim=BaseReport(
            size=size_of(slim, (model / "model.safetensors").stat().st_size), quality=after.quality
        ),
        delta_nats=delta_nats,
        divergence=after.probed[0],
        probe_tokens=data.probes_WT.numel(),
        warnings=warnings_of(delta_nats),
        samples=_samples(before, after),
        adapters=_adapters(spec, data, before, after),
        layers=layers_of(dense.geometry, plan, slim, after.probed[1]),
        rounds=rounds_of(work),
        latency=_latency(spec, work, plan),
        stages=(*timings(work, EARLIER_STAGES), _own_timing(started)),
        evaluation_tokens=data.text.num_tokens,
        methods=tuple(map(cite, _methods(spec.recipe))),
        versions={"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in PACKAGES},
    )


def reference(spec: PruneSpec, directory: Path, progress: Progress) -> dict[str, float]:
    """Measure the dense base for all jobs that find `directory` as WORK/reference.

    Returns the loss of each adapter that has rows on it, in nats per completion token.
    """
    run = _dense(spec, _data(spec, Checkpoint(spec.base)), directory, progress)
    return dict(run.adapter_losses)


def _latency(spec: PruneSpec, work: Path, plan: Plan) -> LatencyReport | None:
    size = timed(spec.recipe, work).size
    if size is None or size.latency_ms is None or size.table is None:
        return None
    widths = Widths(
        tuple(len(layer.kv_groups) for layer in plan.layers),
        tuple(len(layer.ffn_channels) for layer in plan.layers),
    )
    return LatencyReport(
        asked=size.latency_ms,
        predicted=size.table.predicted(widths),
        dense=decode_ms(spec.base, size),
        slim=decode_ms(slim_base(spec, work), size),
        table=size.table,
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

    tokenizer: Tokenizer
    text: Windows
    rows: Mapping[str, list[Example]]  # by adapter

    @property
    def probes_WT(self) -> Tensor:
        """What both bases are compared on."""
        return probes(self.text.ids_WT)


@dataclass(frozen=True)
class _Subject:
    """A base that is measured, its adapters, and what is asked of it about the probes."""

    base: Path
    adapters: Mapping[str, Path]
    probe: Callable[[Any], Any]


@dataclass(frozen=True)
class _Run:
    """What a base did on the data; losses by adapter, the base's own and the adapter's."""

    quality: Quality
    probed: Any  # what came of the probes
    continuations: list[tuple[str, str]]
    base_losses: Mapping[str, float]
    adapter_losses: Mapping[str, float]


def _data(spec: PruneSpec, dense: Checkpoint) -> _Data:
    tokenizer = load_tokenizer(spec.base)
    longest = dense.config.get("max_position_embeddings") or spec.recipe.evaluation.length
    text = evaluation.windows(tokenizer, spec.evaluation, spec.recipe.evaluation)
    rows = {
        name: evaluation.rows(tokenizer, path / EVALUATION, longest, f"adapters.{name}")
        for name, path in sorted(spec.adapters.items())
        if (path / EVALUATION).is_file()
    }
    share = text.num_tokens // max(1, len(rows))  # adapters share what the base gets
    return _Data(tokenizer, text, {name: _at_most(share, found) for name, found in rows.items()})


def _at_most(num_tokens: int, rows: list[Example]) -> list[Example]:
    """Rows of about so many tokens, at least one, spread evenly."""
    count = max(1, len(rows) * num_tokens // sum(len(ids) for ids, _ in rows))
    return [rows[i] for i in evaluation.spread(len(rows), count)]


class _Known:
    """Measurements by name, each in a JSON file of a directory, made only once."""

    def __init__(self, directory: Path):
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def of(self, name: str) -> "_Known":
        return _Known(self.directory / name)

    def __call__(self, name: str, measured: Callable[[], Any]) -> Any:
        path, draft = self.directory / f"{name}.json", self.directory / "draft"
        if not path.is_file():
            draft.write_text(json.dumps(measured()), encoding="utf-8")
            draft.rename(path)
        return json.loads(path.read_text(encoding="utf-8"))


def _runs(
    spec: PruneSpec, work: Path, plan: Plan, data: _Data, state: Path, progress: Progress
) -> tuple[_Run, _Run]:
    """The dense base, then the slim one, each with its adapters: one of them is in memory."""
    directory = shared(work, REFERENCE, state)
    before = _dense(spec, data, directory, part(progress, 0, 0.6))

    def compared(base: Any) -> tuple[float, list[float]]:
        widen = partial(widened, plan=plan, dense=Geometry.of(spec.base))
        layers, records = (plan.kept_layers, len(plan.layers)), directory / PROBES
        return divergence(base, data.probes_WT, records, *layers, widen)

    carried = {name: work / "carry" / "adapters" / name for name in spec.adapters}
    slim = _Subject(slim_base(spec, work), carried, compared)
    return before, _run(slim, data, _Known(state / "slim"), part(progress, 0.6, 1))


def _dense(spec: PruneSpec, data: _Data, directory: Path, progress: Progress) -> _Run:
    """The dense base, measured or known."""
    recorded = partial(record, ids_WT=data.probes_WT, directory=directory / PROBES)
    subject = _Subject(spec.base, spec.adapters, recorded)
    return _run(subject, data, _Known(directory / "dense"), progress)


def _run(subject: _Subject, data: _Data, known: _Known, progress: Progress) -> _Run:
    """Run a base over everything, then its adapters over their rows, several at a time.

    It is loaded once, or never where all is known.
    """
    model = cache(partial(evaluation.load, subject.base))
    names = list(data.rows)
    share = 1 / (1 + 2 * len(names))
    first = part(progress, 0, share)
    found = known("text", lambda: asdict(evaluation.perplexity(model(), data.text, first)))
    probed = known("probes", lambda: subject.probe(model()))
    written = known(
        "continuations", lambda: continuations(model(), data.tokenizer, data.text.ids_WT)
    )
    alone, adapted = known.of("base"), known.of("adapters")
    base_losses, adapter_losses = dict[str, float](), dict[str, float]()
    for i in range(0, len(names), ABREAST):
        some = names[i : i + ABREAST]
        start, middle, end = (share * (1 + 2 * i + n * len(some)) for n in range(3))
        ahead, behind = part(progress, start, middle), part(progress, middle, end)
        examples, which = [data.rows[name] for name in some], f"from-{i}"
        losses = alone(which, partial(_losses, model, (), examples, ahead))
        base_losses |= zip(some, losses, strict=True)
        adapters = [subject.adapters[name] for name in some]
        losses = adapted(which, partial(_losses, model, adapters, examples, behind))
        adapter_losses |= zip(some, losses, strict=True)
    quality = Quality(token_perplexity=found["token"], word_perplexity=found["word"])
    return _Run(quality, probed, written, base_losses, adapter_losses)


def _losses(
    model: Callable[[], Any],
    adapters: Sequence[Path],
    data: Sequence[list[Example]],
    progress: Progress,
) -> list[float]:
    """Of the base, or of it with each adapter on its own rows, all in the same batches."""
    with mounted(model(), adapters) as chosen:
        return evaluation.completion_losses(model(), data, progress, chosen.choose)


def _samples(before: _Run, after: _Run) -> tuple[Sample, ...]:
    pairs = zip(before.continuations, after.continuations, strict=True)
    return tuple(Sample(prompt=p, dense=dense, slim=slim) for (p, dense), (_, slim) in pairs)


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
