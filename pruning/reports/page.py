"""The report as one self-contained page."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pruning.reports.report import Report

_UNITS = ("B", "KB", "MB", "GB", "TB")


def render(report: Report) -> str:
    """HTML that needs no network, no script and no font."""
    return rendered("report.html.jinja", report=report)


def rendered(template: str, **values: Any) -> str:
    """A template of this folder, filled in."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bytes": _bytes, "count": _count, "change": _change, "loss": _loss}
    return environment.get_template(template).render(**values)


def _bytes(size: int) -> str:
    value = float(size)
    for unit in _UNITS[:-1]:
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} {_UNITS[-1]}"


def _count(number: int) -> str:
    return f"{number:,}".replace(",", "\u202f")


def _change(after: float, before: float) -> str:
    return f"{(after / before - 1) * 100:+.1f} %" if before else ""


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
