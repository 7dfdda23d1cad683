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

    @property
    def tenant(self) -> str:
        """Who looks."""
        return self._tenant

    def of(self, tenant: str) -> Self:
        """The same tables, as another tenant sees them."""
        view = copy.copy(self)
        view._tenant = tenant
        return view

    def _seen(self, table: sa.Table) -> sa.ColumnElement[bool]:
        """The condition that a row is the tenant's own, or shared."""
        return sa.or_(table.c.tenant == self._tenant, table.c.shared)

    def _key(self, home: str, name: str) -> dict[str, str]:
        """The key of an own adapter, generator or composition of the base with the id `home`."""
        return {"tenant": self._tenant, "base": home, "name": name}

    def _home(self, connection: sa.Connection, base: str) -> str:
        """The id of the base that the tenant knows by a name: its own, before a shared one.

        NotFound when it sees none.
        """
        table = schema.bases
        query = sa.select(table.c.id).where(table.c.name == base, self._seen(table))
        own_first = sa.case((table.c.tenant == self._tenant, 0), else_=1)
        if (home := connection.scalar(query.order_by(own_first))) is None:
            raise NotFound(f"base {base!r} does not exist")
        return str(home)

    def _all(self, query: sa.Select[Any]) -> list[sa.RowMapping]:
        with self._engine.connect() as connection:
            return list(connection.execute(query).mappings())

    def _on(
        self, table: sa.Table, base: str | None, which: sa.ColumnElement[bool]
    ) -> list[sa.RowMapping]:
        """Such rows of all bases, or of one, by base and name; none of a base that is not seen."""
        query = sa.select(table).where(which).order_by(table.c.base, table.c.name)
        with self._engine.connect() as connection:
            if base is not None:
                try:
                    query = query.where(table.c.base == self._home(connection, base))
                except NotFound:
                    return []
            return list(connection.execute(query).mappings())

    def _own(self, table: sa.Table) -> sa.ColumnElement[bool]:
        """The condition that a row is the tenant's own."""
        return table.c.tenant == self._tenant

    def _one(self, table: sa.Table, what: str, base: str, name: str) -> sa.RowMapping:
        """The own row of a name on a base; NotFound, naming `what`."""
        with self._engine.connect() as connection:
            return fetch(connection, table, what, **self._of(connection, what, base, name))

    def _of(self, connection: sa.Connection, what: str, base: str, name: str) -> dict[str, str]:
        """The key of what is the tenant's on a base that it knows by name; NotFound as above."""
        try:
            return self._key(self._home(connection, base), name)
        except NotFound:
            raise NotFound(f"{what} does not exist") from None

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


def check_free(connection: sa.Connection, table: sa.Table, model: str, **key: str) -> None:
    """Conflict when a model of the other kind has the name already."""
    if find(connection, table, **key):
        raise Conflict(f"{model} exists already; delete it or choose another name")
