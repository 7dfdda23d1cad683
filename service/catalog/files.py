"""Uploaded texts by id, and content on disk that rows refer to."""

from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from service import schema
from service.catalog.quotas import Quotas
from service.catalog.tables import equal, fetch, find, insert, now, row_of
from service.records import File


class Files(Quotas):
    """Uploaded texts; the same content is the same file."""

    def files(self, purpose: str | None = None) -> tuple[File, ...]:
        """All uploaded files, newest first."""
        table = schema.files
        query = sa.select(table).where(table.c.tenant == self._tenant)
        query = query.order_by(table.c.created.desc(), table.c.id)
        if purpose is not None:
            query = query.where(schema.files.c.purpose == purpose)
        return tuple(_file(row) for row in self._all(query))

    def file(self, id: str) -> File:
        with self._engine.connect() as connection:
            return _file(
                fetch(connection, schema.files, f"file {id!r}", tenant=self._tenant, id=id)
            )

    def add_file(
        self,
        path: Path,
        digest: str,
        filename: str,
        purpose: str,
        size: int,
        place: Callable[[], None] = lambda: None,
    ) -> File:
        """Register a text under an id made of its digest; the same content again is the same file.

        `place` runs inside the transaction, as for adapters.  QuotaExceeded as for them.
        """
        file = File(
            f"file-{digest[:24]}", digest, path, filename, purpose, size, now(), self._tenant
        )
        with self._write() as connection:
            if row := find(connection, schema.files, tenant=self._tenant, id=file.id):
                return _file(row)
            insert(connection, schema.files, row_of(file, schema.files), f"file {file.id}")
            self._check_room(connection)
            place()
        return file

    def delete_file(self, id: str) -> File:
        with self._write() as connection:
            file = _file(
                fetch(connection, schema.files, f"file {id!r}", tenant=self._tenant, id=id)
            )
            connection.execute(
                sa.delete(schema.files).where(
                    equal(schema.files, {"tenant": self._tenant, "id": id})
                )
            )
        return file

    def release(self, path: Path, remove: Callable[[Path], None]) -> None:
        """Remove content from disk unless a row still refers to it."""
        with self._write() as connection:
            for table in (schema.adapters, schema.files):
                query = sa.select(table.c.path).where(table.c.path == str(path)).limit(1)
                if connection.execute(query).first():
                    return
            remove(path)


def _file(row: sa.RowMapping) -> File:
    return File(**{**row, "path": Path(row["path"])})
