"""Aliases: names that move from one base to another, and back."""

import sqlalchemy as sa

from service import schema
from service.catalog.audit import Audit
from service.catalog.tables import equal, insert, now
from service.errors import Conflict, NotFound
from service.records import Alias


class Aliases(Audit):
    """Each tenant's own; an alias keeps the bases that it named before, the last in force."""

    def aliases(self) -> tuple[Alias, ...]:
        """All aliases by name."""
        table = schema.aliases
        query = sa.select(table).where(table.c.tenant == self._tenant)
        return _aliases(self._all(query.order_by(table.c.name, table.c.number)))

    def alias(self, name: str) -> Alias:
        if (found := self.find_alias(name)) is None:
            raise NotFound(f"alias {name!r} does not exist")
        return found

    def find_alias(self, name: str) -> Alias | None:
        """An alias, or None."""
        return next((alias for alias in self.aliases() if alias.name == name), None)

    def promote(self, name: str, base: str) -> Alias:
        """Let an alias, new or not, name this base; Conflict when a base has its name."""
        with self._write() as connection:
            home = self._home(connection, base)
            if self._is_base(connection, name):
                raise Conflict(f"base {name!r} exists; choose another alias", param="id")
            known = self._history(connection, name)
            if not known or known[-1].base != home:
                number = known[-1].number + 1 if known else 1
                row = {**self._own_name(name), "number": number, "base": home, "created": now()}
                insert(connection, schema.aliases, row, f"alias {name!r}")
                self._note(connection, "alias.promote", f"{name} to {base}")
        return self.alias(name)

    def roll_back(self, name: str) -> Alias:
        """Let an alias name what it named before; Conflict when that was nothing."""
        with self._write() as connection:
            known = self._history(connection, name)
            if not known:
                raise NotFound(f"alias {name!r} does not exist")
            if len(known) == 1:
                raise Conflict(f"alias {name!r} has named nothing else before", param="id")
            last = schema.aliases.c.number == known[-1].number
            own = equal(schema.aliases, self._own_name(name))
            connection.execute(sa.delete(schema.aliases).where(own, last))
            self._note(connection, "alias.roll_back", name)
        return self.alias(name)

    def delete_alias(self, name: str) -> Alias:
        """Forget an alias; its bases stay."""
        alias = self.alias(name)
        with self._write() as connection:
            own = equal(schema.aliases, self._own_name(name))
            connection.execute(sa.delete(schema.aliases).where(own))
            self._note(connection, "alias.delete", name)
        return alias

    def _is_base(self, connection: sa.Connection, name: str) -> bool:
        table = schema.bases
        query = sa.select(table.c.id).where(table.c.name == name, self._seen(table))
        return connection.execute(query).first() is not None

    def _own_name(self, name: str) -> dict[str, str]:
        return {"tenant": self._tenant, "name": name}

    def _history(self, connection: sa.Connection, name: str) -> list[sa.Row[tuple[int, str]]]:
        table = schema.aliases
        query = sa.select(table.c.number, table.c.base).where(equal(table, self._own_name(name)))
        return list(connection.execute(query.order_by(table.c.number)))


def _aliases(rows: list[sa.RowMapping]) -> tuple[Alias, ...]:
    """Of rows in the order of name and number."""
    history: dict[str, list[sa.RowMapping]] = {}
    for row in rows:
        history.setdefault(row["name"], []).append(row)
    return tuple(
        Alias(name, own[-1]["base"], tuple(row["base"] for row in own[:-1]), own[-1]["created"])
        for name, own in history.items()
    )
