"""Take texts in for calibration and evaluation, and let them go."""

import codecs
import copy
from pathlib import Path
from typing import BinaryIO, Self

from pruning.digest import file_digest
from pruning.errors import InvalidInput
from service import content
from service.catalog import Catalog
from service.records import File
from service.settings import Settings

_CHUNK = 1 << 20


class Files:
    """Uploaded texts; the same content again is the same file."""

    def __init__(self, settings: Settings, catalog: Catalog):
        self._settings = settings
        self._catalog = catalog

    def of(self, catalog: Catalog) -> Self:
        """The same, for the tenant whose catalog it is."""
        view = copy.copy(self)
        view._catalog = catalog
        return view

    def add(self, stream: BinaryIO, filename: str, purpose: str) -> File:
        """Keep a text; InvalidInput unless it is UTF-8 and there is any."""
        _check_filename(filename)
        with content.staging(self._settings.files) as directory:
            staged = directory / "text"
            content.copy(stream, staged)
            _check_text(staged)
            digest = file_digest(staged)
            final = self._settings.files.absolute() / digest
            size = staged.stat().st_size
            try:
                return self._catalog.add_file(
                    final,
                    digest,
                    filename,
                    purpose,
                    size,
                    place=lambda: content.place(staged, final),
                )
            except BaseException:
                self._catalog.release(final, content.remove)
                raise

    def delete(self, id: str) -> File:
        """Forget a text and remove it from disk."""
        file = self._catalog.delete_file(id)
        self._catalog.release(file.path, content.remove)
        return file


def _check_filename(name: str) -> None:
    if not name or len(name) > 255 or name in (".", "..") or set(name) & set("/\\\0"):
        raise InvalidInput("file", f"{name[:80]!r} is not a plain file name")


def _check_text(path: Path) -> None:
    decoder, empty = codecs.getincrementaldecoder("utf-8")(), True
    with path.open("rb") as stream:
        try:
            while chunk := stream.read(_CHUNK):
                empty = not decoder.decode(chunk).strip() and empty
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise InvalidInput(
                "file", f"is not UTF-8 text ({error.reason}); convert it, e.g. with iconv"
            ) from error
    if empty:
        raise InvalidInput("file", "holds no text")
