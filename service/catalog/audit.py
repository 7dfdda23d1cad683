"""Who changed what, and when: one row with every change, in its transaction, for good."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
import structlog

from service import schema
from service.catalog.tables import Tables, now

_BY_HAND = "command line or worker"  # who has no request


@dataclass(frozen=True)
class Change:
    """`tenant` is whose thing changed; `by` the tenant that asked, with the id of its `key`."""

    number: int
    created: int
    tenant: str
    action: str
    object: str
    by: str
    key: str | None
    request_id: str | None


class Audit(Tables):
    """Rows are added and read; the database itself refuses to change or remove one."""

    def changes(
        self, tenant: str | None = None, before: int | None = None, limit: int = 100
    ) -> tuple[Change, ...]:
        """The newest changes first, of one tenant's things or of all; those before a number."""
        table = schema.audit
        query = sa.select(table).order_by(table.c.number.desc()).limit(limit)
        if tenant is not None:
            query = query.where(table.c.tenant == tenant)
        if before is not None:
            query = query.where(table.c.number < before)
        return tuple(Change(**row) for row in self._all(query))

    def note(self, action: str, object: str) -> None:
        """Tell of a change that is not the catalog's own."""
        with self._write() as connection:
            self._note(connection, action, object)

    def _note(self, connection: sa.Connection, action: str, object: str) -> None:
        """Tell of a change in its own transaction."""
        asks: dict[str, Any] = structlog.contextvars.get_contextvars()
        row = {
            "created": now(),
            "tenant": self._tenant,
            "action": action,
            "object": object,
            "by": asks.get("tenant", _BY_HAND),
            "key": asks.get("key"),
            "request_id": asks.get("request_id"),
        }
        connection.execute(schema.audit.insert().values(row))
