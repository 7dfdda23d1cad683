"""Generators by base and name."""

from pathlib import Path

import sqlalchemy as sa

from service import schema
from service.catalog.audit import Audit
from service.catalog.tables import equal, fetch
from service.records import Generator


class Generators(Audit):
    """What makes adapters; each is an artifact of a job."""

    def generators(self, base: str | None = None) -> tuple[Generator, ...]:
        """All generators, or those of one base, by base and name."""
        table = schema.generators
        return tuple(_generator(row) for row in self._on(table, base, self._own(table)))

    def generator(self, base: str, name: str) -> Generator:
        what = f"generator {base}+{name}"
        return _generator(self._one(schema.generators, what, base, name))

    def delete_generator(self, base: str, name: str) -> Generator:
        """Forget a generator; the adapters that it made stay."""
        with self._write() as connection:
            what = f"generator {base}+{name}"
            key = self._of(connection, what, base, name)
            generator = _generator(fetch(connection, schema.generators, what, **key))
            connection.execute(sa.delete(schema.generators).where(equal(schema.generators, key)))
            self._note(connection, "generator.delete", generator.id)
        return generator


def _generator(row: sa.RowMapping) -> Generator:
    return Generator(**{**row, "path": Path(row["path"])})
