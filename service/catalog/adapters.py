"""Adapters by base and name."""

from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from service import schema
from service.catalog.tables import Tables, check_free, equal, fetch, insert, now, row_of
from service.errors import Conflict
from service.records import Adapter


class Adapters(Tables):
    """Adapters, whose content is immutable; their names may move to other content."""

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
        adapter = Adapter(base, name, digest, path, rank, now())
        with self._write() as connection:
            fetch(connection, schema.bases, f"base {base!r}", name=base)
            check_free(connection, schema.compositions, base, name)
            row = row_of(adapter, schema.adapters)
            insert(connection, schema.adapters, row, f"adapter {adapter.model}")
            place()
        return adapter

    def replace_adapter(
        self, base: str, name: str, path: Path, digest: str, rank: int, place: Callable[[], None]
    ) -> Adapter:
        """Give an adapter other content; what it was before."""
        with self._write() as connection:
            key = {"base": base, "name": name}
            before = _adapter(fetch(connection, schema.adapters, f"adapter {base}+{name}", **key))
            place()
            values = {"path": str(path), "digest": digest, "rank": rank, "created": now()}
            update = sa.update(schema.adapters).where(equal(schema.adapters, key))
            connection.execute(update.values(values))
        return before

    def delete_adapter(self, base: str, name: str) -> Adapter:
        """Forget an adapter; Conflict while named compositions use it."""
        with self._write() as connection:
            key = {"base": base, "name": name}
            adapter = _adapter(fetch(connection, schema.adapters, f"adapter {base}+{name}", **key))
            query = sa.select(schema.compositions).where(schema.compositions.c.base == base)
            rows = [row for row in connection.execute(query).mappings() if name in row["parts"]]
            if users := ", ".join(sorted(f"{base}+{row['name']}" for row in rows)):
                raise Conflict(f"adapter {adapter.model} is in use; delete first: {users}")
            connection.execute(sa.delete(schema.adapters).where(equal(schema.adapters, key)))
        return adapter


def _adapter(row: sa.RowMapping) -> Adapter:
    return Adapter(**{**row, "path": Path(row["path"])})
