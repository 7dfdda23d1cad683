"""Bases by name."""

import json
from dataclasses import replace
from pathlib import Path

import sqlalchemy as sa

from pruning.errors import InvalidInput
from service import schema
from service.catalog.tables import Tables, fetch, insert, now, row_of
from service.errors import Conflict, NotFound
from service.records import Base


class Bases(Tables):
    """Servable directories; a base outlives neither its adapters nor its slim bases."""

    def bases(self, *, serve: bool | None = None) -> tuple[Base, ...]:
        """All bases by name, or only those that are (not) to be served."""
        return self._bases(serve, self._seen(schema.bases))

    def every_base(self, *, serve: bool | None = None) -> tuple[Base, ...]:
        """Those of all tenants: what engines are to serve, and which names are taken."""
        return self._bases(serve, sa.true())

    def _bases(self, serve: bool | None, seen: sa.ColumnElement[bool]) -> tuple[Base, ...]:
        query = sa.select(schema.bases).where(seen).order_by(schema.bases.c.name)
        if serve is not None:
            query = query.where(schema.bases.c.serve == serve)
        return tuple(_base(row) for row in self._all(query))

    def base(self, name: str) -> Base:
        for base in self.bases():
            if base.name == name:
                return base
        raise NotFound(f"base {name!r} does not exist")

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
        """Register the servable directory `path`; Conflict when the name is taken."""
        base = replace(
            new_base(name, path, digest, parent, artifact, serve),
            tenant=self._tenant,
            shared=shared,
        )
        with self._write() as connection:
            insert(connection, schema.bases, row_of(base, schema.bases), f"base {name!r}")
        return base

    def set_serve(self, name: str, serve: bool) -> Base:
        """Start or stop serving a base."""
        with self._write() as connection:
            self._check_base(connection, name)
            connection.execute(
                sa.update(schema.bases).where(schema.bases.c.name == name).values(serve=serve)
            )
        return self.base(name)

    def delete_base(self, name: str) -> Base:
        """Forget a base; Conflict while adapters or slim bases depend on it."""
        with self._write() as connection:
            self._check_base(connection, name)
            base = _base(fetch(connection, schema.bases, f"base {name!r}", name=name))
            if dependents := _dependents(connection, name):
                raise Conflict(
                    f"base {name!r} is in use; delete first: {', '.join(dependents)}", param="base"
                )
            connection.execute(sa.delete(schema.bases).where(schema.bases.c.name == name))
        return base


def new_base(
    name: str, path: Path, digest: str, parent: str | None, artifact: str | None, serve: bool
) -> Base:
    """A base that is not registered yet; InvalidInput unless its config can be read."""
    path = path.absolute()
    try:
        config = json.loads((path / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise InvalidInput("path", f"{path}/config.json cannot be read: {error}") from error
    return Base(name, path, digest, config, parent, artifact, serve, now())


def _base(row: sa.RowMapping) -> Base:
    return Base(**{**row, "path": Path(row["path"])})


def _dependents(connection: sa.Connection, name: str) -> list[str]:
    adapters = sa.select(schema.adapters.c.name).distinct().where(schema.adapters.c.base == name)
    table = schema.generators
    generators = sa.select(table.c.name).distinct().where(table.c.base == name)
    slim = sa.select(schema.bases.c.name).where(schema.bases.c.parent == name)
    aliases = sa.select(schema.aliases.c.name).distinct().where(schema.aliases.c.base == name)
    return [
        *(f"adapter {name}+{row}" for row in connection.scalars(adapters.order_by("name"))),
        *(f"generator {name}+{row}" for row in connection.scalars(generators.order_by("name"))),
        *(f"alias {row}" for row in connection.scalars(aliases.order_by("name"))),
        *(f"slim base {row}" for row in connection.scalars(slim.order_by("name"))),
    ]
