"""Bases on disk: take in directories that stay where they are, and read what slim ones tell."""

from pathlib import Path

from pruning.digest import tree_digest
from pruning.errors import InvalidInput
from pruning.reports.report import Report
from pruning.weights.base_format import read_base
from service.catalog import Catalog
from service.errors import NotFound
from service.records import Base


def register(catalog: Catalog, name: str, path: Path, serve: bool) -> Base:
    """Check a checkpoint and register it under its digest; every byte of it is read once."""
    if not path.is_absolute():
        raise InvalidInput("path", f"{path} must be absolute: it is a path on the server")
    try:
        read_base(path)
        files = [file.name for file in path.iterdir() if file.is_file()]
        digest = tree_digest(path, files)
    except OSError as error:
        raise InvalidInput("path", f"cannot be read: {error}") from error
    return catalog.add_base(name, path, digest, serve=serve)


def weight_bytes(base: Base) -> int:
    """How large the weight files of a base are."""
    return sum(file.stat().st_size for file in base.path.glob("*.safetensors"))


def report_of(base: Base) -> Report:
    """What the job that made a slim base measured; NotFound for a base that no job made."""
    return Report.model_validate_json(report_file(base, "json").read_bytes())


def report_file(base: Base, format: str) -> Path:
    """The file of that report: `format` is json or html."""
    path = base.path.parent / f"report.{format}"
    if base.artifact is None or not path.is_file():
        raise NotFound(f"base {base.name!r} has no report; pruning jobs write them")
    return path
