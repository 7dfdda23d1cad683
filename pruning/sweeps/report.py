"""What a sweep measured of its cells, as data (torch-free)."""

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from pruning.reports.pareto import dominators, front
from pruning.reports.report import Citation, Report, Size, StageReport
from pruning.sweeps.recipe import Changes, SweepRecipe

VALUE_BYTES = 2  # of a cached key or value


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Measured(_Frozen):
    """A base as a sweep compares it.

    `weight_bytes` are those of its tensors, without the headers of files, which differ by some
    bytes in bases of one size; `bytes` are these and those of the KV cache of as many tokens as
    the recipe's `context` says.  `adapters` have the loss on their own held-out rows, in nats per
    completion token, or None without rows.
    """

    parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    bytes: int
    token_perplexity: float
    adapters: dict[str, float | None]
    latency_ms: float | None  # of a decoding step, if the recipe asks for it


class Cell(Measured):
    """A slim base that a cell made, its adapters carried.

    `delta_nats` is the loss per token of the held-out text over the dense base, `divergence` the
    KL from the dense base's predictions in nats, `seconds` what the cell took besides what all
    share.  `dominated_by` is a cell of the front that is no larger and loses no more, but not as
    large or loses less; None for the front's own.
    """

    number: int
    changes: Changes
    export: str
    removed_fraction: float
    delta_nats: float
    divergence: float
    seconds: float
    dominated_by: int | None = None


class FailedCell(_Frozen):
    """A cell that could not be made, and why."""

    number: int
    changes: Changes
    param: str
    message: str


class SweepReport(_Frozen):
    """The cells of a sweep, and which of them are worth having; `front` ascends in bytes."""

    recipe: SweepRecipe
    dense: Measured
    cells: tuple[Cell, ...]
    failed: tuple[FailedCell, ...]
    front: tuple[int, ...]
    shared: tuple[StageReport, ...]  # what was done once for all cells
    evaluation_tokens: int
    probe_tokens: int
    methods: tuple[Citation, ...]
    versions: dict[str, str]

    @property
    def best(self) -> tuple[Cell, ...]:
        """The cells of the front, smallest first."""
        cells = {cell.number: cell for cell in self.cells}
        return tuple(cells[number] for number in self.front)


def compared(cells: Iterable[Cell]) -> tuple[tuple[Cell, ...], tuple[int, ...]]:
    """The cells, each told what dominates it, and the numbers of those on the front."""
    found = tuple(cells)
    points = [(cell.bytes, cell.delta_nats) for cell in found]
    above = [None if by is None else found[by].number for by in dominators(points)]
    told = (
        cell.model_copy(update={"dominated_by": by}) for cell, by in zip(found, above, strict=True)
    )
    return tuple(told), tuple(found[i].number for i in front(points))


def cell_of(
    number: int, sweep: SweepRecipe, report: Report, weight_bytes: int, latency_ms: float | None
) -> Cell:
    """What the report of a job tells about a cell."""
    return Cell(
        number=number,
        changes=sweep.changes()[number],
        export=report.export,
        removed_fraction=report.removed_fraction,
        delta_nats=report.delta_nats,
        divergence=report.divergence,
        seconds=round(sum(stage.seconds for stage in report.stages), 3),
        token_perplexity=report.slim.quality.token_perplexity,
        adapters={adapter.name: adapter.slim_adapter for adapter in report.adapters},
        latency_ms=latency_ms,
        **_sizes(report.slim.size, weight_bytes, sweep.context),
    )


def dense_of(
    sweep: SweepRecipe, report: Report, weight_bytes: int, latency_ms: float | None
) -> Measured:
    """What the report of any cell tells about the dense base."""
    return Measured(
        token_perplexity=report.dense.quality.token_perplexity,
        adapters={adapter.name: adapter.dense_adapter for adapter in report.adapters},
        latency_ms=latency_ms,
        **_sizes(report.dense.size, weight_bytes, sweep.context),
    )


def _sizes(size: Size, weight_bytes: int, context: int) -> dict[str, int]:
    """The sizes of a base that is served with `context` tokens in its KV cache."""
    per_token = VALUE_BYTES * size.kv_cache_values_per_token
    return {
        "parameters": size.parameters,
        "weight_bytes": weight_bytes,
        "kv_bytes_per_token": per_token,
        "bytes": weight_bytes + context * per_token,
    }
