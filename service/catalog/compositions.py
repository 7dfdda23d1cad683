"""Named compositions by base and name."""

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from pruning.recipe import Method
from service import schema
from service.catalog.adapters import check_shared
from service.catalog.audit import Audit
from service.catalog.tables import check_free, equal, fetch, insert, now
from service.composition import Composition, Part
from service.errors import Conflict, NotFound
from service.records import NamedComposition, base_name

_SAME = ("tenant", "base", "name", "pinned", "shared", "created")  # in a record and in its row


class Compositions(Audit):
    """Weighted sums of adapters under names of their own."""

    def compositions(self, base: str | None = None) -> tuple[NamedComposition, ...]:
        """All named compositions, or those of one base, by base and name.

        A shared one is not seen where a model of one's own has its name.
        """
        table, own = schema.compositions, set[tuple[str, str]]()
        for rows in (self._on(t, base, self._own(t)) for t in (table, schema.adapters)):
            own |= {(row["base"], row["name"]) for row in rows}
        found = (_composition(row) for row in self._on(table, base, self._seen(table)))
        return tuple(c for c in found if c.tenant == self._tenant or (c.base, c.name) not in own)

    def find_composition(self, base: str, name: str) -> NamedComposition | None:
        """A named composition, or None."""
        return next((c for c in self.compositions(base) if c.name == name), None)

    def composition(self, base: str, name: str) -> NamedComposition:
        if (named := self.find_composition(base, name)) is None:
            raise NotFound(f"composition {base}+{name} does not exist")
        return named

    def add_composition(
        self, name: str, composition: Composition, *, pinned: bool = False
    ) -> NamedComposition:
        """Register a composition; NotFound for an unknown adapter, Conflict on a taken name."""
        with self._write() as connection:
            home = self._home(connection, composition.base)
            named = NamedComposition(home, name, composition, pinned, now(), self._tenant)
            for part in composition.parts:
                self._check_adapter(connection, home, part.adapter)
            check_free(connection, schema.adapters, named.model, **self._key(home, name))
            insert(connection, schema.compositions, _row(named), f"composition {named.model}")
            self._note(connection, "composition.add", named.model)
        return named

    def share_composition(self, base: str, name: str, shared: bool) -> NamedComposition:
        """Show an own composition to all tenants, or to none other.

        Conflict when another model is shared under the name, or an adapter in it is private.
        """
        with self._write() as connection:
            what = f"composition {base}+{name}"
            key = self._of(connection, what, base, name)
            row = fetch(connection, schema.compositions, what, **key)
            if shared:
                check_shared(connection, f"{base}+{name}", key)
                self._check_public(connection, key["base"], row["parts"])
            update = sa.update(schema.compositions).where(equal(schema.compositions, key))
            connection.execute(update.values(shared=shared))
            action = "composition.publish" if shared else "composition.hide"
            self._note(connection, action, f"{base}+{name}")
        return self.composition(base, name)

    def _check_public(self, connection: sa.Connection, home: str, parts: Iterable[str]) -> None:
        """Conflict unless what the tenant knows by these names is what everybody may use."""
        table = schema.adapters
        query = sa.select(table).where(table.c.base == home, self._own(table), ~table.c.shared)
        private = {row["name"] for row in connection.execute(query).mappings()} & set(parts)
        if private:
            names = ", ".join(f"{base_name(home)}+{name}" for name in sorted(private))
            raise Conflict(f"make public first what it is made of: {names}")

    def _check_adapter(self, connection: sa.Connection, home: str, name: str) -> None:
        table = schema.adapters
        query = sa.select(table.c.name).where(
            table.c.base == home, table.c.name == name, self._seen(table)
        )
        if connection.execute(query).first() is None:
            raise NotFound(f"adapter {base_name(home)}+{name} does not exist")

    def tenants_with_pins(self) -> tuple[str, ...]:
        """The tenants that want compositions to stay loaded."""
        table = schema.compositions
        query = sa.select(table.c.tenant).where(table.c.pinned).distinct().order_by(table.c.tenant)
        return tuple(row["tenant"] for row in self._all(query))

    def delete_composition(self, base: str, name: str) -> NamedComposition:
        with self._write() as connection:
            what = f"composition {base}+{name}"
            key = self._of(connection, what, base, name)
            named = _composition(fetch(connection, schema.compositions, what, **key))
            connection.execute(
                sa.delete(schema.compositions).where(equal(schema.compositions, key))
            )
            self._note(connection, "composition.delete", named.model)
        return named


def _row(named: NamedComposition) -> dict[str, Any]:
    composition = named.composition
    return {
        **{field: getattr(named, field) for field in _SAME},
        "parts": {part.adapter: part.weight for part in composition.parts},
        "strategy": composition.strategy.model_dump(mode="json"),
    }


def _composition(row: sa.RowMapping) -> NamedComposition:
    parts = tuple(Part(name, weight) for name, weight in sorted(row["parts"].items()))
    strategy = Method.model_validate(row["strategy"])
    composition = Composition(base_name(row["base"]), parts, strategy)
    same = {field: row[field] for field in _SAME}
    return NamedComposition(composition=composition, **same)
