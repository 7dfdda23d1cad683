"""The report of a sweep as one self-contained page."""

from collections.abc import Sequence
from dataclasses import dataclass

from pruning.reports.page import rendered
from pruning.sweeps.recipe import brief, label
from pruning.sweeps.report import Cell, SweepReport

WIDTH, HEIGHT = 640, 300  # of the plot, in its own units
_TICKS = 5


@dataclass(frozen=True)
class Axis:
    """Values along a side of the plot, from none to a little more than the largest."""

    largest: float
    length: float

    def at(self, value: float) -> float:
        """How far along the side a value lies."""
        return round(self.length * value / (1.05 * self.largest), 2)

    @property
    def ticks(self) -> list[float]:
        """Values to write at the side."""
        return [self.largest * i / _TICKS for i in range(_TICKS + 1)]


def render(report: SweepReport) -> str:
    """HTML that needs no network, no script and no font."""
    return rendered(
        "sweep.html.jinja",
        report=report,
        fields=sorted(report.recipe.grid),
        cells=sorted(report.cells, key=lambda cell: (cell.bytes, cell.delta_nats)),
        x=Axis(report.dense.bytes, WIDTH),
        y=_losses(report.cells),
        width=WIDTH,
        height=HEIGHT,
        brief=brief,
        label=label,
    )


def _losses(cells: Sequence[Cell]) -> Axis:
    """A cell that loses nothing lies at the bottom, as does one that gains."""
    return Axis(max(max(cell.delta_nats for cell in cells), 0.01), HEIGHT)
