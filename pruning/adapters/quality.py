"""What a made adapter is worth: how much of its sources' gains over the base survives."""

from collections.abc import Mapping
from pathlib import Path

from pruning import evaluation
from pruning.adapters.compression import applied
from pruning.adapters.inputs import deltas_of, on_base
from pruning.adapters.jobs import AdapterSpec, ResultReport, TaskReport
from pruning.adapters.source import Source
from pruning.errors import InvalidInput
from pruning.evaluation import Example
from pruning.progress import Progress

Losses = dict[tuple[str, str], float]  # of what (base, own, or a result) on whose rows


def losses_of(
    spec: AdapterSpec,
    sources: list[Source],
    directories: list[Path],
    rows: Mapping[str, list[Example]],
    progress: Progress,
) -> Losses:
    """Of the base, each source and each result, on the rows of each source."""
    losses: Losses = {}
    if not rows:
        return losses
    model = evaluation.load(spec.base)
    for done, source in enumerate(sources):
        if (own := rows.get(source.name)) is None:
            continue
        progress(done / len(sources) / 2, f"measuring {source.name}")
        losses["base", source.name] = evaluation.completion_loss(model, own, silent)
        bags = on_base(spec, {key: source.bag(key) for key in source.places})
        with applied(model, deltas_of(bags)):
            losses["own", source.name] = evaluation.completion_loss(model, own, silent)
    for done, directory in enumerate(directories):
        progress(0.5 + done / len(directories) / 2, f"measuring {directory.name}")
        adapted = evaluation.with_adapter(model, directory)
        for name, own in rows.items():
            losses[directory.name, name] = evaluation.completion_loss(adapted, own, silent)
        model = adapted.unload()
    return losses


def task_report(
    name: str, weight: float, rows: Mapping[str, list[Example]], losses: Losses, result: str
) -> TaskReport:
    """What of a source's gain the result has."""
    base, own, found = (losses.get((what, name)) for what in ("base", "own", result))
    recovered = None
    if base is not None and own is not None and found is not None and own < base:
        recovered = (base - found) / (base - own)
    return TaskReport(
        source=name,
        weight=weight,
        rows=len(rows.get(name, ())),
        base=base,
        own=own,
        result=found,
        recovered=recovered,
    )


def check_floor(result: ResultReport, floor: float) -> None:
    """Raise InvalidInput when a result keeps less than `floor` of any source's gain."""
    worst = result.worst
    if worst is not None and worst.recovered is not None and worst.recovered < floor:
        raise InvalidInput(
            "floor",
            f"{result.name} keeps {worst.recovered:.3f} of the gain of {worst.source}, less than "
            f"{floor}; raise the rank or that source's weight, merge fewer, or lower the floor",
            code="below_floor",
        )


def silent(fraction: float, message: str) -> None:
    """Progress that nobody hears."""
