"""Named compositions by base and name."""

import sqlalchemy as sa

from pruning.recipe import Method
from service import schema
from service.catalog.tables import Tables, check_free, equal, fetch, insert, now
from service.composition import Composition, Part
from service.errors import NotFound
from service.records import NamedComposition


class Compositions(Tables):
    """Weighted sums of adapters under names of their own."""

    def compositions(self, base: str | None = None) -> tuple[NamedComposition, ...]:
        """All named compositions, or those of one base, by base and name."""
        return tuple(_composition(row) for row in self._own(schema.compositions, base))

    def find_composition(self, base: str, name: str) -> NamedComposition | None:
        """A named composition, or None."""
        query = sa.select(schema.compositions).where(
            equal(schema.compositions, self._key(base, name))
        )
        rows = self._all(query)
        return _composition(rows[0]) if rows else None

    def composition(self, base: str, name: str) -> NamedComposition:
        row = self._one(schema.compositions, f"composition {base}+{name}", **self._key(base, name))
        return _composition(row)

    def add_composition(
        self, name: str, composition: Composition, *, pinned: bool = False
    ) -> NamedComposition:
        """Register a composition; NotFound for an unknown adapter, Conflict on a taken name."""
        named, base = NamedComposition(name, composition, pinned, now()), composition.base
        values = {
            **self._key(base, name),
            "parts": {part.adapter: part.weight for part in composition.parts},
            "strategy": composition.strategy.model_dump(mode="json"),
            "pinned": pinned,
            "created": named.created,
        }
        with self._write() as connection:
            self._check_base(connection, base)
            for part in composition.parts:
                self._check_adapter(connection, base, part.adapter)
            check_free(connection, schema.adapters, **self._key(base, name))
            insert(connection, schema.compositions, values, f"composition {named.model}")
        return named

    def _check_adapter(self, connection: sa.Connection, base: str, name: str) -> None:
        table = schema.adapters
        query = sa.select(table.c.name).where(
            table.c.base == base, table.c.name == name, self._seen(table)
        )
        if connection.execute(query).first() is None:
            raise NotFound(f"adapter {base}+{name} does not exist")

    def tenants_with_pins(self) -> tuple[str, ...]:
        """The tenants that want compositions to stay loaded."""
        table = schema.compositions
        query = sa.select(table.c.tenant).where(table.c.pinned).distinct().order_by(table.c.tenant)
        return tuple(row["tenant"] for row in self._all(query))

    def delete_composition(self, base: str, name: str) -> NamedComposition:
        with self._write() as connection:
            key = self._key(base, name)
            what = f"composition {base}+{name}"
            named = _composition(fetch(connection, schema.compositions, what, **key))
            connection.execute(
                sa.delete(schema.compositions).where(equal(schema.compositions, key))
            )
        return named


def _composition(row: sa.RowMapping) -> NamedComposition:
    parts = tuple(Part(name, weight) for name, weight in sorted(row["parts"].items()))
    composition = Composition(row["base"], parts, Method.model_validate(row["strategy"]))
    return NamedComposition(row["name"], composition, row["pinned"], row["created"])
