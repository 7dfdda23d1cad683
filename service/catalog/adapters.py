"""Adapters by base and name."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import sqlalchemy as sa

from service import content, schema
from service.catalog.quotas import Quotas
from service.catalog.tables import check_free, equal, fetch, insert, now, row_of
from service.errors import Conflict, NotFound
from service.records import Adapter, base_name


class Adapters(Quotas):
    """Adapters, whose content is immutable; their names may move to other content."""

    def adapters(self, base: str | None = None) -> tuple[Adapter, ...]:
        """All adapters, or those of one base, by base and name.

        A shared one that has the name of one's own is not seen.
        """
        table = schema.adapters
        seen: dict[tuple[str, str], Adapter] = {}
        for adapter in map(_adapter, self._on(table, base, self._seen(table))):
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
            what = f"adapter {base}+{name}"
            key = self._of(connection, what, base, name)
            fetch(connection, schema.adapters, what, **key)
            if shared:
                check_shared(connection, f"{base}+{name}", key)
            else:
                _check_unused(connection, key, _reaching_others(self._tenant))
            update = sa.update(schema.adapters).where(equal(schema.adapters, key))
            connection.execute(update.values(shared=shared))
            self._note(
                connection, "adapter.publish" if shared else "adapter.hide", f"{base}+{name}"
            )
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
        with self._write() as connection:
            home = self._home(connection, base)
            adapter = Adapter(home, name, digest, path, rank, now(), self._tenant)
            check_free(connection, schema.compositions, adapter.model, **self._key(home, name))
            place()
            adapter = replace(adapter, bytes=content.size(path))
            row = row_of(adapter, schema.adapters)
            insert(connection, schema.adapters, row, f"adapter {adapter.model}")
            self._check_room(connection)
            self._note(connection, "adapter.add", adapter.model)
        return adapter

    def replace_adapter(
        self, base: str, name: str, path: Path, digest: str, rank: int, place: Callable[[], None]
    ) -> Adapter:
        """Give an adapter other content; what it was before."""
        with self._write() as connection:
            what = f"adapter {base}+{name}"
            key = self._of(connection, what, base, name)
            before = _adapter(fetch(connection, schema.adapters, what, **key))
            place()
            values = {"path": str(path), "digest": digest, "rank": rank, "created": now()}
            update = sa.update(schema.adapters).where(equal(schema.adapters, key))
            connection.execute(update.values(**values, bytes=content.size(path)))
            self._check_room(connection)
            self._note(connection, "adapter.replace", before.model)
        return before

    def delete_adapter(self, base: str, name: str) -> Adapter:
        """Forget an adapter; Conflict while named compositions use it."""
        with self._write() as connection:
            what = f"adapter {base}+{name}"
            key = self._of(connection, what, base, name)
            adapter = _adapter(fetch(connection, schema.adapters, what, **key))
            own = schema.compositions.c.tenant == self._tenant
            _check_unused(connection, key, sa.true() if adapter.shared else own)
            connection.execute(sa.delete(schema.adapters).where(equal(schema.adapters, key)))
            self._note(connection, "adapter.delete", adapter.model)
        return adapter


def check_shared(connection: sa.Connection, model: str, key: Mapping[str, str]) -> None:
    """Conflict when an adapter or a composition of another is shared under this name."""
    for table in (schema.adapters, schema.compositions):
        query = sa.select(table.c.tenant).where(
            table.c.base == key["base"], table.c.name == key["name"], table.c.shared
        )
        if set(connection.scalars(query)) - {key["tenant"]}:
            raise Conflict(f"another model is public as {model}; choose another name")


def _reaching_others(tenant: str) -> sa.ColumnElement[bool]:
    """Compositions that use an adapter of `tenant` for somebody else."""
    table = schema.compositions
    return sa.or_(table.c.tenant != tenant, table.c.shared)


def _check_unused(
    connection: sa.Connection, key: Mapping[str, str], which: sa.ColumnElement[bool]
) -> None:
    """Conflict while any such composition has the adapter; names those of its tenant alone."""
    table = schema.compositions
    query = sa.select(table).where(table.c.base == key["base"], which)
    rows = [row for row in connection.execute(query).mappings() if key["name"] in row["parts"]]
    base = base_name(key["base"])
    own = sorted(f"{base}+{row['name']}" for row in rows if row["tenant"] == key["tenant"])
    if rows:
        users = f"delete first: {', '.join(own)}" if own else "other tenants compose with it"
        raise Conflict(f"adapter {base}+{key['name']} is in use; {users}")


def _adapter(row: sa.RowMapping) -> Adapter:
    return Adapter(**{**row, "path": Path(row["path"])})
