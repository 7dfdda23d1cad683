"""Which cell of a sweep to make: the best within a limit, or one by its number (torch-free)."""

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pruning.errors import InvalidInput
from pruning.recipe import Name, Recipe
from pruning.sweeps.report import Cell, SweepReport

LIMITS = ("target_bytes", "target_latency_ms", "max_loss")


class Choice(BaseModel):
    """One limit, or a cell's number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name | None = Field(None, description="of the slim base; SWEEP-CELL where not given")
    target_bytes: int | None = Field(None, ge=1, description="the most, counted as the sweep did")
    target_latency_ms: float | None = Field(
        None, gt=0, description="the most for a decoding step, as the sweep measured it"
    )
    max_loss: float | None = Field(
        None, description="the most in nats per token over the dense base; the smallest is taken"
    )
    cell: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _one(self) -> "Choice":
        if sum(getattr(self, name) is not None for name in (*LIMITS, "cell")) != 1:
            raise ValueError(f"give one of {', '.join(LIMITS)} and cell")
        return self

    def recipe(self, report: SweepReport) -> Recipe:
        """The recipe of the cell that fits best; InvalidInput as for `chosen`."""
        number = chosen(self, report).number
        recipe = report.recipe.cell(number)
        return recipe.model_copy(update={"name": self.name}) if self.name else recipe


def chosen(choice: Choice, report: SweepReport) -> Cell:
    """The cell of a sweep that fits best.

    Within bytes or a latency that is the one that loses least, within a loss the smallest.  Raises
    InvalidInput that names the nearest cell when none fits.
    """
    if choice.cell is not None:
        return _numbered(choice.cell, report)
    if choice.target_bytes is not None:
        return _within("target_bytes", choice.target_bytes, report, lambda c: c.bytes, _loss)
    if choice.max_loss is not None:
        return _within("max_loss", choice.max_loss, report, _loss, lambda c: c.bytes)
    assert choice.target_latency_ms is not None
    if report.dense.latency_ms is None:
        raise InvalidInput(
            "target_latency_ms",
            "the sweep measured no latency; give its recipe `latency: {batch: 1, context: 1024}`",
        )
    return _within("target_latency_ms", choice.target_latency_ms, report, _latency, _loss)


Measure = Callable[[Cell], Any]


def _within(
    field: str, limit: float, report: SweepReport, limited: Measure, least: Measure
) -> Cell:
    fits = [cell for cell in report.cells if limited(cell) <= limit]
    if not fits:
        nearest = min(report.cells, key=limited)
        raise InvalidInput(
            field, f"no cell fits; the nearest, cell {nearest.number}, has {limited(nearest):,.6g}"
        )
    return min(fits, key=lambda cell: (least(cell), limited(cell)))


def _loss(cell: Cell) -> float:
    return cell.delta_nats


def _latency(cell: Cell) -> float:
    assert cell.latency_ms is not None
    return cell.latency_ms


def _numbered(number: int, report: SweepReport) -> Cell:
    for cell in report.cells:
        if cell.number == number:
            return cell
    known = ", ".join(str(cell.number) for cell in report.cells)
    raise InvalidInput("cell", f"the sweep made no cell {number}; it made: {known}")
