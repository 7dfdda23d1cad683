"""The catalog: bases, adapters and files by name, in SQL, returned as frozen data."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from pruning.adapters.jobs import AdapterSpec
from pruning.adapters.peft_format import read_adapter
from pruning.digest import tree_digest
from pruning.errors import InvalidInput
from pruning.recipe import Method, PruneSpec
from service import schema
from service.composition import Composition, Part
from service.database import connect
from service.errors import Conflict, NotFound
from service.records import Adapter, Base, File, NamedComposition

_WRITER_LOCK = 0x67726166  # key of the PostgreSQL advisory lock that writers hold


class Catalog:
    """Every lookup raises NotFound for an unknown name; every write is one transaction.

    Writers take turns (SQLite's write lock, an advisory lock on PostgreSQL), so that content on
    disk can appear and go together with the rows that refer to it.
    """

    def __init__(self, url: str):
        self._engine = connect(url)
        with self._write() as connection:
            schema.metadata.create_all(connection)

    def close(self) -> None:
        self._engine.dispose()

    # bases

    def bases(self, *, serve: bool | None = None) -> tuple[Base, ...]:
        """All bases by name, or only those that are (not) to be served."""
        query = sa.select(schema.bases).order_by(schema.bases.c.name)
        if serve is not None:
            query = query.where(schema.bases.c.serve == serve)
        return tuple(_base(row) for row in self._all(query))

    def base(self, name: str) -> Base:
        return _base(self._one(schema.bases, f"base {name!r}", name=name))

    def add_base(
        self,
        name: str,
        path: Path,
        digest: str,
        *,
        parent: str | None = None,
        artifact: str | None = None,
        serve: bool = True,
    ) -> Base:
        """Register the servable directory `path`; Conflict when the name is taken."""
        base = _new_base(name, path, digest, parent, artifact, serve)
        with self._write() as connection:
            _insert(connection, schema.bases, _row(base), f"base {name!r}")
        return base

    def set_serve(self, name: str, serve: bool) -> Base:
        """Start or stop serving a base."""
        with self._write() as connection:
            connection.execute(
                sa.update(schema.bases).where(schema.bases.c.name == name).values(serve=serve)
            )
        return self.base(name)

    def delete_base(self, name: str) -> Base:
        """Forget a base; Conflict while adapters or slim bases depend on it."""
        with self._write() as connection:
            base = _base(_fetch(connection, schema.bases, f"base {name!r}", name=name))
            if dependents := _dependents(connection, name):
                raise Conflict(
                    f"base {name!r} is in use; delete first: {', '.join(dependents)}", param="base"
                )
            connection.execute(sa.delete(schema.bases).where(schema.bases.c.name == name))
        return base

    # adapters

    def adapters(self, base: str | None = None) -> tuple[Adapter, ...]:
        """All adapters, or those of one base, by base and name."""
        query = sa.select(schema.adapters).order_by(schema.adapters.c.base, schema.adapters.c.name)
        if base is not None:
            query = query.where(schema.adapters.c.base == base)
        return tuple(_adapter(row) for row in self._all(query))

    def adapter(self, base: str, name: str) -> Adapter:
        return _adapter(self._one(schema.adapters, f"adapter {base}+{name}", base=base, name=name))

    def add_adapter(
        self,
        base: str,
        name: str,
        path: Path,
        digest: str,
        rank: int,
        place: Callable[[], None] = lambda: None,
    ) -> Adapter:
        """Register an adapter whose content `place` puts at `path`; Conflict on a taken name.

        `place` runs inside the transaction: no other writer can remove what it finds in place.
        """
        adapter = Adapter(base, name, digest, path, rank, _now())
        with self._write() as connection:
            _fetch(connection, schema.bases, f"base {base!r}", name=base)
            _check_free(connection, schema.compositions, base, name)
            _insert(connection, schema.adapters, _row(adapter), f"adapter {adapter.model}")
            place()
        return adapter

    def replace_adapter(
        self, base: str, name: str, path: Path, digest: str, rank: int, place: Callable[[], None]
    ) -> Adapter:
        """Give an adapter other content; what it was before."""
        with self._write() as connection:
            key = {"base": base, "name": name}
            before = _adapter(_fetch(connection, schema.adapters, f"adapter {base}+{name}", **key))
            place()
            values = {"path": str(path), "digest": digest, "rank": rank, "created": _now()}
            update = sa.update(schema.adapters).where(_equal(schema.adapters, key))
            connection.execute(update.values(values))
        return before

    def delete_adapter(self, base: str, name: str) -> Adapter:
        """Forget an adapter; Conflict while named compositions use it."""
        with self._write() as connection:
            key = {"base": base, "name": name}
            adapter = _adapter(_fetch(connection, schema.adapters, f"adapter {base}+{name}", **key))
            query = sa.select(schema.compositions).where(schema.compositions.c.base == base)
            rows = [row for row in connection.execute(query).mappings() if name in row["parts"]]
            if users := ", ".join(sorted(f"{base}+{row['name']}" for row in rows)):
                raise Conflict(f"adapter {adapter.model} is in use; delete first: {users}")
            connection.execute(sa.delete(schema.adapters).where(_equal(schema.adapters, key)))
        return adapter

    # compositions

    def compositions(self, base: str | None = None) -> tuple[NamedComposition, ...]:
        """All named compositions, or those of one base, by base and name."""
        table = schema.compositions
        query = sa.select(table).order_by(table.c.base, table.c.name)
        if base is not None:
            query = query.where(table.c.base == base)
        return tuple(_composition(row) for row in self._all(query))

    def find_composition(self, base: str, name: str) -> NamedComposition | None:
        """A named composition, or None."""
        query = sa.select(schema.compositions).where(
            _equal(schema.compositions, {"base": base, "name": name})
        )
        rows = self._all(query)
        return _composition(rows[0]) if rows else None

    def composition(self, base: str, name: str) -> NamedComposition:
        row = self._one(schema.compositions, f"composition {base}+{name}", base=base, name=name)
        return _composition(row)

    def add_composition(
        self, name: str, composition: Composition, *, pinned: bool = False
    ) -> NamedComposition:
        """Register a composition; NotFound for an unknown adapter, Conflict on a taken name."""
        named, base = NamedComposition(name, composition, pinned, _now()), composition.base
        values = {
            "base": base,
            "name": name,
            "parts": {part.adapter: part.weight for part in composition.parts},
            "strategy": composition.strategy.model_dump(mode="json"),
            "pinned": pinned,
            "created": named.created,
        }
        with self._write() as connection:
            _fetch(connection, schema.bases, f"base {base!r}", name=base)
            for part in composition.parts:
                what = f"adapter {base}+{part.adapter}"
                _fetch(connection, schema.adapters, what, base=base, name=part.adapter)
            _check_free(connection, schema.adapters, base, name)
            _insert(connection, schema.compositions, values, f"composition {named.model}")
        return named

    def delete_composition(self, base: str, name: str) -> NamedComposition:
        with self._write() as connection:
            key = {"base": base, "name": name}
            what = f"composition {base}+{name}"
            named = _composition(_fetch(connection, schema.compositions, what, **key))
            connection.execute(
                sa.delete(schema.compositions).where(_equal(schema.compositions, key))
            )
        return named

    def release(self, path: Path, remove: Callable[[Path], None]) -> None:
        """Remove content from disk unless a row still refers to it."""
        with self._write() as connection:
            for table in (schema.adapters, schema.files):
                query = sa.select(table.c.path).where(table.c.path == str(path)).limit(1)
                if connection.execute(query).first():
                    return
            remove(path)

    # files

    def files(self, purpose: str | None = None) -> tuple[File, ...]:
        """All uploaded files, newest first."""
        query = sa.select(schema.files).order_by(schema.files.c.created.desc(), schema.files.c.id)
        if purpose is not None:
            query = query.where(schema.files.c.purpose == purpose)
        return tuple(_file(row) for row in self._all(query))

    def file(self, id: str) -> File:
        return _file(self._one(schema.files, f"file {id!r}", id=id))

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

        `place` runs inside the transaction, as for adapters.
        """
        file = File(f"file-{digest[:24]}", digest, path, filename, purpose, size, _now())
        with self._write() as connection:
            query = sa.select(schema.files).where(schema.files.c.id == file.id)
            if row := connection.execute(query).mappings().first():
                return _file(row)
            _insert(connection, schema.files, _row(file), f"file {file.id}")
            place()
        return file

    def delete_file(self, id: str) -> File:
        with self._write() as connection:
            file = _file(_fetch(connection, schema.files, f"file {id!r}", id=id))
            connection.execute(sa.delete(schema.files).where(schema.files.c.id == id))
        return file

    # artifacts

    def publish(self, spec: PruneSpec | AdapterSpec, artifact_dir: Path, digest: str) -> None:
        """Register a finished artifact, whatever the kind of its job; may be repeated."""
        if isinstance(spec, PruneSpec):
            self.publish_artifact(spec, artifact_dir, digest)
        else:
            self._publish_adapters(spec, artifact_dir)

    def _publish_adapters(self, spec: AdapterSpec, artifact_dir: Path) -> None:
        base = self.base(spec.recipe.base)
        made = [_carried(base, path) for path in sorted((artifact_dir / "adapters").iterdir())]
        with self._write() as connection:
            for adapter in made:
                key = {"base": base.name, "name": adapter.name}
                held = sa.select(schema.adapters).where(_equal(schema.adapters, key))
                row = connection.execute(held).mappings().first()
                composed = sa.select(schema.compositions).where(_equal(schema.compositions, key))
                taken = row is not None and row["digest"] != adapter.digest
                if taken or connection.execute(composed).first():
                    raise InvalidInput(
                        "name",
                        f"{adapter.model} exists already; choose another name",
                        code="conflict",
                        status=409,
                    )
                if row is None:
                    _insert(connection, schema.adapters, _row(adapter), adapter.model)

    def publish_artifact(self, spec: PruneSpec, artifact_dir: Path, digest: str) -> None:
        """Register a finished artifact: the slim base and the adapters that were carried.

        May be repeated: what is registered already stays.  InvalidInput, which the job reports,
        when the name belongs to something else than this artifact.
        """
        name, model = spec.recipe.name, artifact_dir / "model"
        base = _new_base(name, model, tree_digest(model), spec.recipe.base, digest, serve=True)
        adapters = [
            _carried(base, directory) for directory in sorted((artifact_dir / "adapters").glob("*"))
        ]
        with self._write() as connection:
            query = sa.select(schema.bases).where(schema.bases.c.name == name)
            if (row := connection.execute(query).mappings().first()) is None:
                _insert(connection, schema.bases, _row(base), f"base {name!r}")
            elif row["artifact"] != digest:
                raise InvalidInput(
                    "name",
                    f"base {name!r} exists already; choose another name",
                    code="conflict",
                    status=409,
                )
            for adapter in adapters:
                key = {"base": name, "name": adapter.name}
                held = sa.select(schema.adapters).where(_equal(schema.adapters, key))
                if connection.execute(held).first() is None:
                    _insert(connection, schema.adapters, _row(adapter), adapter.model)

    def _all(self, query: sa.Select[Any]) -> list[sa.RowMapping]:
        with self._engine.connect() as connection:
            return list(connection.execute(query).mappings())

    def _one(self, table: sa.Table, what: str, **key: str) -> sa.RowMapping:
        with self._engine.connect() as connection:
            return _fetch(connection, table, what, **key)

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        with self._engine.execution_options(write=True).begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_WRITER_LOCK)))
            yield connection


def _now() -> int:
    return int(time.time())


def _new_base(
    name: str, path: Path, digest: str, parent: str | None, artifact: str | None, serve: bool
) -> Base:
    path = path.absolute()
    try:
        config = json.loads((path / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise InvalidInput("path", f"{path}/config.json cannot be read: {error}") from error
    return Base(name, path, digest, config, parent, artifact, serve, _now())


def _carried(base: Base, directory: Path) -> Adapter:
    info = read_adapter(directory, base.geometry, field=f"adapters.{directory.name}")
    return Adapter(base.name, directory.name, info.digest, directory.absolute(), info.rank, _now())


def _row(item: Base | Adapter | File) -> dict[str, Any]:
    values = {c.name: getattr(item, c.name) for c in _TABLES[type(item)].columns}
    return {**values, "path": str(item.path)}


_TABLES: dict[type, sa.Table] = {
    Base: schema.bases,
    Adapter: schema.adapters,
    File: schema.files,
}


def _base(row: sa.RowMapping) -> Base:
    return Base(**{**row, "path": Path(row["path"])})


def _adapter(row: sa.RowMapping) -> Adapter:
    return Adapter(**{**row, "path": Path(row["path"])})


def _composition(row: sa.RowMapping) -> NamedComposition:
    parts = tuple(Part(name, weight) for name, weight in sorted(row["parts"].items()))
    composition = Composition(row["base"], parts, Method.model_validate(row["strategy"]))
    return NamedComposition(row["name"], composition, row["pinned"], row["created"])


def _file(row: sa.RowMapping) -> File:
    return File(**{**row, "path": Path(row["path"])})


def _equal(table: sa.Table, key: Mapping[str, str]) -> sa.ColumnElement[bool]:
    return sa.and_(*(table.c[column] == value for column, value in key.items()))


def _fetch(connection: sa.Connection, table: sa.Table, what: str, **key: str) -> sa.RowMapping:
    row = connection.execute(sa.select(table).where(_equal(table, key))).mappings().first()
    if row is None:
        raise NotFound(f"{what} does not exist")
    return row


def _insert(connection: sa.Connection, table: sa.Table, row: dict[str, Any], what: str) -> None:
    try:
        connection.execute(sa.insert(table).values(row))
    except IntegrityError as error:
        raise Conflict(f"{what} exists already; delete it or choose another name") from error


def _check_free(connection: sa.Connection, table: sa.Table, base: str, name: str) -> None:
    """Conflict when a model of the other kind has the name already."""
    query = sa.select(table.c.name).where(_equal(table, {"base": base, "name": name}))
    if connection.execute(query).first():
        raise Conflict(f"{base}+{name} exists already; delete it or choose another name")


def _dependents(connection: sa.Connection, name: str) -> list[str]:
    adapters = sa.select(schema.adapters.c.name).where(schema.adapters.c.base == name)
    slim = sa.select(schema.bases.c.name).where(schema.bases.c.parent == name)
    return [f"adapter {name}+{row}" for row in connection.scalars(adapters.order_by("name"))] + [
        f"slim base {row}" for row in connection.scalars(slim.order_by("name"))
    ]
