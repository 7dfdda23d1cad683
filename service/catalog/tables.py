"""What all parts of the catalog share: reads, writers that take turns, and single rows."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from service.errors import Conflict, NotFound

_WRITER_LOCK = 0x67726166  # key of the PostgreSQL advisory lock that writers hold


class Tables:
    """The tables of one database."""

    def __init__(self, engine: sa.Engine):
        self._engine = engine

    def _all(self, query: sa.Select[Any]) -> list[sa.RowMapping]:
        with self._engine.connect() as connection:
            return list(connection.execute(query).mappings())

    def _one(self, table: sa.Table, what: str, **key: str) -> sa.RowMapping:
        with self._engine.connect() as connection:
            return fetch(connection, table, what, **key)

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        with self._engine.execution_options(write=True).begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_WRITER_LOCK)))
            yield connection


def now() -> int:
    return int(time.time())


def equal(table: sa.Table, key: Mapping[str, str]) -> sa.ColumnElement[bool]:
    """The condition that every column of `key` has its value."""
    return sa.and_(*(table.c[column] == value for column, value in key.items()))


def find(connection: sa.Connection, table: sa.Table, **key: str) -> sa.RowMapping | None:
    return connection.execute(sa.select(table).where(equal(table, key))).mappings().first()


def fetch(connection: sa.Connection, table: sa.Table, what: str, **key: str) -> sa.RowMapping:
    """The row of this key; NotFound, naming `what`, when there is none."""
    if (row := find(connection, table, **key)) is None:
        raise NotFound(f"{what} does not exist")
    return row


def insert(connection: sa.Connection, table: sa.Table, row: dict[str, Any], what: str) -> None:
    """Add a row; Conflict, naming `what`, when its key is taken."""
    try:
        connection.execute(sa.insert(table).values(row))
    except IntegrityError as error:
        raise Conflict(f"{what} exists already; delete it or choose another name") from error


def row_of(item: object, table: sa.Table) -> dict[str, Any]:
    """The row of a record that has an attribute for each column of its table."""
    values = {column.name: getattr(item, column.name) for column in table.columns}
    return {**values, "path": str(values["path"])}


def check_free(connection: sa.Connection, table: sa.Table, base: str, name: str) -> None:
    """Conflict when a model of the other kind has the name already."""
    if find(connection, table, base=base, name=name):
        raise Conflict(f"{base}+{name} exists already; delete it or choose another name")
