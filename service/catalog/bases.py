"""Bases by name."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from pruning.errors import InvalidInput
from service import schema
from service.catalog.audit import Audit
from service.catalog.tables import fetch, find, insert, now, row_of
from service.errors import Conflict, NotFound
from service.records import Base, base_id, base_name


class Bases(Audit):
    """Servable directories; a base outlives neither its adapters nor its slim bases."""

    def bases(self, *, serve: bool | None = None) -> tuple[Base, ...]:
        """All bases by name, or only those that are (not) to be served.

        A shared one that has the name of one's own is not seen, nor is a parent that is hidden.
        """
        found = [_base(row) for row in self._all(self._query(self._seen(schema.bases)))]
        own = {base.name for base in found if base.tenant == self._tenant}
        seen = [b for b in found if b.tenant == self._tenant or b.name not in own]
        ids = {base.id for base in seen}
        told = (replace(b, parent=b.parent if b.parent in ids else None) for b in seen)
        return tuple(base for base in told if serve in (None, base.serve))

    def every_base(self, *, serve: bool | None = None) -> tuple[Base, ...]:
        """Those of all tenants: what engines are to serve."""
        query = self._query(sa.true() if serve is None else schema.bases.c.serve == serve)
        return tuple(_base(row) for row in self._all(query))

    def _query(self, which: sa.ColumnElement[bool]) -> sa.Select[Any]:
        return sa.select(schema.bases).where(which).order_by(schema.bases.c.id)

    def base(self, name: str) -> Base:
        return self._found("name", name)

    def base_by_id(self, id: str) -> Base:
        return self._found("id", id)

    def _found(self, attribute: str, value: str) -> Base:
        for base in self.bases():
            if getattr(base, attribute) == value:
                return base
        raise NotFound(f"base {base_name(value)!r} does not exist")

    def add_base(
        self,
        name: str,
        path: Path,
        digest: str,
        *,
        parent: str | None = None,
        artifact: str | None = None,
        serve: bool = True,
        shared: bool = True,
    ) -> Base:
        """Register the servable directory `path`; Conflict when the name is taken.

        `parent` is the name of a base.
        """
        base = replace(
            new_base(name, path, digest, artifact=artifact, serve=serve),
            id=base_id(name, self._tenant, shared),
            tenant=self._tenant,
            shared=shared,
        )
        with self._write() as connection:
            if parent is not None:
                base = replace(base, parent=self._home(connection, parent))
            self._check_name(connection, name)
            insert(connection, schema.bases, row_of(base, schema.bases), f"base {name!r}")
            self._note(connection, "base.add", name)
        return base

    def _check_name(self, connection: sa.Connection, name: str) -> None:
        """Conflict when the tenant sees a base of this name, or has an alias of it."""
        query = self._query(sa.and_(schema.bases.c.name == name, self._seen(schema.bases)))
        if connection.execute(query).first():
            raise Conflict(f"base {name!r} exists already; delete it or choose another name")
        if find(connection, schema.aliases, tenant=self._tenant, name=name):
            raise Conflict(f"alias {name!r} exists already; delete it or choose another name")

    def set_serve(self, name: str, serve: bool) -> Base:
        """Start or stop serving a base."""
        return self._change(name, self._home, serve=serve)

    def share_base(self, name: str, shared: bool) -> Base:
        """Show an own base to all tenants, or to none other.

        Conflict when another is shared under the name, or when others have something on it.
        """
        return self._change(name, self._shareable if shared else self._hidable, shared=shared)

    def _change(
        self, name: str, admitted: Callable[[sa.Connection, str], str], **values: bool
    ) -> Base:
        with self._write() as connection:
            id = admitted(connection, name)
            connection.execute(
                sa.update(schema.bases).where(schema.bases.c.id == id).values(values)
            )
            ((what, value),) = values.items()
            self._note(connection, _ACTIONS[what, value], name)
        return self.base(name)

    def _shareable(self, connection: sa.Connection, name: str) -> str:
        query = self._query(sa.and_(schema.bases.c.name == name, schema.bases.c.shared))
        others = connection.execute(query.where(schema.bases.c.tenant != self._tenant))
        id = self._own_base(connection, name)
        if others.first():
            raise Conflict(f"another base is public as {name!r}; choose another name")
        return id

    def _hidable(self, connection: sa.Connection, name: str) -> str:
        id = self._own_base(connection, name)
        for table, column in _REFERENCES:
            query = sa.select(table).where(column == id, table.c.tenant != self._tenant)
            if connection.execute(query.limit(1)).first():
                raise Conflict(f"base {name!r} is in use by other tenants", param="base")
        return id

    def _own_base(self, connection: sa.Connection, name: str) -> str:
        key = {"tenant": self._tenant, "name": name}
        return str(fetch(connection, schema.bases, f"base {name!r}", **key)["id"])

    def delete_base(self, name: str) -> Base:
        """Forget a base; Conflict while adapters or slim bases depend on it."""
        with self._write() as connection:
            id = self._home(connection, name)
            base = _base(fetch(connection, schema.bases, f"base {name!r}", id=id))
            if dependents := _dependents(connection, id):
                raise Conflict(
                    f"base {name!r} is in use; delete first: {', '.join(dependents)}", param="base"
                )
            connection.execute(sa.delete(schema.bases).where(schema.bases.c.id == id))
            self._note(connection, "base.delete", name)
        return base


_ACTIONS = {
    ("serve", True): "base.serve",
    ("serve", False): "base.stop",
    ("shared", True): "base.publish",
    ("shared", False): "base.hide",
}
_REFERENCES = (
    (schema.adapters, schema.adapters.c.base),
    (schema.generators, schema.generators.c.base),
    (schema.compositions, schema.compositions.c.base),
    (schema.aliases, schema.aliases.c.base),
    (schema.bases, schema.bases.c.parent),
)


def new_base(name: str, path: Path, digest: str, *, artifact: str | None, serve: bool) -> Base:
    """A base that is not registered yet; InvalidInput unless its config can be read."""
    path = path.absolute()
    try:
        config = json.loads((path / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise InvalidInput("path", f"{path}/config.json cannot be read: {error}") from error
    return Base(name, name, path, digest, config, None, artifact, serve, now())


def _base(row: sa.RowMapping) -> Base:
    return Base(**{**row, "path": Path(row["path"])})


def _dependents(connection: sa.Connection, id: str) -> list[str]:
    on = f"{base_name(id)}+"
    kinds = {
        schema.adapters: f"adapter {on}",
        schema.generators: f"generator {on}",
        schema.aliases: "alias ",
        schema.bases: "slim base ",
    }
    found = []
    for table, column in _REFERENCES:
        if kind := kinds.get(table):  # compositions go with their adapters
            names = connection.scalars(sa.select(table.c.name).distinct().where(column == id))
            found += [f"{kind}{name}" for name in sorted(names)]
    return found
