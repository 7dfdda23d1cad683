"""Take bases in: directories on the server's disk that stay where they are."""

from pathlib import Path

from pruning.digest import tree_digest
from pruning.errors import InvalidInput
from pruning.weights.base_format import read_base
from service.catalog import Catalog
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
