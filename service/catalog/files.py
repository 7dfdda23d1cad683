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
            self._note(connection, "file.add", file.id)
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
            self._note(connection, "file.delete", id)
        return file

    def release(self, path: Path, remove: Callable[[Path], None]) -> bool:
        """Remove content from disk unless a row of any tenant still refers to it; whether it did.

        `path` is FOLDER/NAME, and a row refers to it that has those parts anywhere in its path:
        however the folder was spelled, or where it lay, when the row was made.
        """
        with self._write() as connection:
            if _is_referred_to(connection, path):
                return False
            remove(path)
        return True

    def contents(self) -> tuple[tuple[str, Path, str], ...]:
        """Everything on disk that rows of any tenant refer to: their table, path and digest."""
        with self._engine.connect() as connection:
            return tuple(
                (table.name, Path(row["path"]), str(row.get("digest", "")))
                for table in _WITH_PATHS
                for row in connection.execute(sa.select(table)).mappings()
            )

    def refers_to(self, path: Path) -> bool:
        """Whether any row refers to this content, as above."""
        with self._engine.connect() as connection:
            return _is_referred_to(connection, path)


_WITH_PATHS = (
    schema.adapters,
    schema.files,
    schema.generators,
    schema.profiles,
    schema.bases,
)


def _is_referred_to(connection: sa.Connection, path: Path) -> bool:
    parts = f"/{path.parent.name}/{path.name}"
    return any(
        connection.execute(
            sa.select(table.c.path).where(table.c.path.contains(parts, autoescape=True)).limit(1)
        ).first()
        for table in _WITH_PATHS
    )


def _file(row: sa.RowMapping) -> File:
    return File(**{**row, "path": Path(row["path"])})
