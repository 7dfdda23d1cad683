"""What all parts of the catalog share: reads, writers that take turns, and single rows."""

import copy
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from service import schema
from service.database import writing
from service.errors import Conflict, NotFound
from service.tenants import LOCAL


class Tables:
    """The tables of one database, as a tenant sees them: its own rows, and what is shared."""

    def __init__(self, engine: sa.Engine, tenant: str = LOCAL):
        self._engine = engine
        self._tenant = tenant

    def of(self, tenant: str) -> Self:
        """The same tables, as another tenant sees them."""
        view = copy.copy(self)
        view._tenant = tenant
        return view

    def _seen(self, table: sa.Table) -> sa.ColumnElement[bool]:
        """The condition that a row is the tenant's own, or shared."""
        return sa.or_(table.c.tenant == self._tenant, table.c.shared)

    def _key(self, base: str, name: str) -> dict[str, str]:
        """The key of an own adapter or composition."""
        return {"tenant": self._tenant, "base": base, "name": name}

    def _check_base(self, connection: sa.Connection, name: str) -> None:
        """NotFound unless the tenant sees a base of this name."""
        query = sa.select(schema.bases.c.name).where(
            schema.bases.c.name == name, self._seen(schema.bases)
        )
        if connection.execute(query).first() is None:
            raise NotFound(f"base {name!r} does not exist")

    def _all(self, query: sa.Select[Any]) -> list[sa.RowMapping]:
        with self._engine.connect() as connection:
            return list(connection.execute(query).mappings())

    def _own(self, table: sa.Table, base: str | None) -> list[sa.RowMapping]:
        """The tenant's own rows, all or those of one base, by base and name."""
        query = sa.select(table).where(table.c.tenant == self._tenant)
        if base is not None:
            query = query.where(table.c.base == base)
        return self._all(query.order_by(table.c.base, table.c.name))

    def _one(self, table: sa.Table, what: str, **key: str) -> sa.RowMapping:
        with self._engine.connect() as connection:
            return fetch(connection, table, what, **key)

    def _write(self) -> AbstractContextManager[sa.Connection]:
        return writing(self._engine)


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


def check_free(connection: sa.Connection, table: sa.Table, **key: str) -> None:
    """Conflict when a model of the other kind has the name already."""
    if find(connection, table, **key):
        base, name = key["base"], key["name"]
        raise Conflict(f"{base}+{name} exists already; delete it or choose another name")
