"""Adapters by base and name."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from service import content, schema
from service.catalog.quotas import Quotas
from service.catalog.tables import check_free, equal, fetch, insert, now, row_of
from service.errors import Conflict, NotFound
from service.records import Adapter


class Adapters(Quotas):
    """Adapters, whose content is immutable; their names may move to other content."""

    def adapters(self, base: str | None = None) -> tuple[Adapter, ...]:
        """All adapters, or those of one base, by base and name.

        A shared one that has the name of one's own is not seen.
        """
        table = schema.adapters
        query = sa.select(table).where(self._seen(table)).order_by(table.c.base, table.c.name)
        if base is not None:
            query = query.where(table.c.base == base)
        seen: dict[tuple[str, str], Adapter] = {}
        for adapter in map(_adapter, self._all(query)):
            key = adapter.base, adapter.name
            if key not in seen or adapter.tenant == self._tenant:
                seen[key] = adapter
        return tuple(seen.values())

    def adapter(self, base: str, name: str) -> Adapter:
        for adapter in self.adapters(base):
            if adapter.name == name:
                return adapter
        raise NotFound(f"adapter {base}+{name} does not exist")

    def share_adapter(self, base: str, name: str, shared: bool) -> Adapter:
        """Show an own adapter to all tenants, or to none other.

        Conflict when another is shared under the name, or when others compose with it.
        """
        with self._write() as connection:
            key = self._key(base, name)
            fetch(connection, schema.adapters, f"adapter {base}+{name}", **key)
            rows = connection.execute(_named(schema.adapters, base, name)).mappings()
            if shared and any(row["shared"] and row["tenant"] != self._tenant for row in rows):
                raise Conflict(f"another adapter is shared as {base}+{name}; choose another name")
            if not shared:
                composed = sa.select(schema.compositions).where(schema.compositions.c.base == base)
                others = composed.where(schema.compositions.c.tenant != self._tenant)
                _check_unused(connection, name, others, self._tenant)
            update = sa.update(schema.adapters).where(equal(schema.adapters, key))
            connection.execute(update.values(shared=shared))
        return self.adapter(base, name)

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
        QuotaExceeded above what the tenant may store.
        """
        adapter = Adapter(base, name, digest, path, rank, now(), self._tenant)
        with self._write() as connection:
            self._check_base(connection, base)
            check_free(connection, schema.compositions, **self._key(base, name))
            place()
            adapter = replace(adapter, bytes=content.size(path))
            row = row_of(adapter, schema.adapters)
            insert(connection, schema.adapters, row, f"adapter {adapter.model}")
            self._check_room(connection)
        return adapter

    def replace_adapter(
        self, base: str, name: str, path: Path, digest: str, rank: int, place: Callable[[], None]
    ) -> Adapter:
        """Give an adapter other content; what it was before."""
        with self._write() as connection:
            key = self._key(base, name)
            before = _adapter(fetch(connection, schema.adapters, f"adapter {base}+{name}", **key))
            place()
            values = {"path": str(path), "digest": digest, "rank": rank, "created": now()}
            update = sa.update(schema.adapters).where(equal(schema.adapters, key))
            connection.execute(update.values(**values, bytes=content.size(path)))
            self._check_room(connection)
        return before

    def delete_adapter(self, base: str, name: str) -> Adapter:
        """Forget an adapter; Conflict while named compositions use it."""
        with self._write() as connection:
            key = self._key(base, name)
            adapter = _adapter(fetch(connection, schema.adapters, f"adapter {base}+{name}", **key))
            query = sa.select(schema.compositions).where(schema.compositions.c.base == base)
            if not adapter.shared:
                query = query.where(schema.compositions.c.tenant == self._tenant)
            _check_unused(connection, name, query, self._tenant)
            connection.execute(sa.delete(schema.adapters).where(equal(schema.adapters, key)))
        return adapter


def _named(table: sa.Table, base: str, name: str) -> sa.Select[Any]:
    return sa.select(table).where(equal(table, {"base": base, "name": name}))


def _check_unused(
    connection: sa.Connection, name: str, compositions: sa.Select[Any], tenant: str
) -> None:
    """Conflict while any of these compositions has the adapter; names those of `tenant` alone."""
    rows = [row for row in connection.execute(compositions).mappings() if name in row["parts"]]
    own = sorted(f"{row['base']}+{row['name']}" for row in rows if row["tenant"] == tenant)
    if rows:
        users = f"delete first: {', '.join(own)}" if own else "other tenants compose with it"
        raise Conflict(f"adapter {rows[0]['base']}+{name} is in use; {users}")


def _adapter(row: sa.RowMapping) -> Adapter:
    return Adapter(**{**row, "path": Path(row["path"])})
