"""Which of several slim bases are worth having: no other is both smaller and better (torch-free).

Such points form a Pareto front (pruning.reports.pareto).
"""

from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict

from pruning.reports.pareto import front
from pruning.reports.report import AdapterReport, Report


class Point(BaseModel):
    """A base by its size and its quality; `adapters_nats` is None without measured adapters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    parameters: int
    weight_bytes: int
    word_perplexity: float
    delta_nats: float  # per token of the held-out text, over the dense base
    adapters_nats: float | None  # mean over adapters of what each loses, per completion token
    on_front: bool = False


def points(reports: Iterable[Report]) -> tuple[Point, ...]:
    """The slim bases that reports are about, smallest first, those on the front marked."""
    found = sorted(map(_point, reports), key=_place)
    best = front([_place(point) for point in found])
    return tuple(p.model_copy(update={"on_front": i in best}) for i, p in enumerate(found))


def _place(point: Point) -> tuple[float, float]:
    return point.parameters, point.delta_nats


def _point(report: Report) -> Point:
    size = report.slim.size
    return Point(
        name=report.recipe.name,
        parameters=size.parameters,
        weight_bytes=size.weight_bytes,
        word_perplexity=report.slim.quality.word_perplexity,
        delta_nats=report.delta_nats,
        adapters_nats=_lost(report.adapters),
    )


def _lost(adapters: Sequence[AdapterReport]) -> float | None:
    losses = [
        adapter.slim_adapter - adapter.dense_adapter
        for adapter in adapters
        if adapter.slim_adapter is not None and adapter.dense_adapter is not None
    ]
    return sum(losses) / len(losses) if losses else None
