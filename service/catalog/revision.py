"""A number that changes with the database, for those who keep what they read from it.

What this process writes changes it at once; what others write, when somebody looks.
"""

from typing import Any

import sqlalchemy as sa

_WROTE = "graftwork wrote"


class Revision:
    """Counts transactions that may have changed what there is; too many rather than too few."""

    def __init__(self, engine: sa.Engine):
        self.number = 0
        self._engine = engine
        self._sqlite: sa.PoolProxiedConnection | None = None
        self._seen: object = None

        @sa.event.listens_for(engine, "commit")
        def mark(connection: sa.Connection) -> None:
            if connection.get_execution_options().get("write"):
                connection.info[_WROTE] = True

        @sa.event.listens_for(engine, "checkin")
        def count(_connection: Any, record: Any) -> None:  # comes after the commit
            if record.info.pop(_WROTE, False):
                self.number += 1

    def look(self) -> int:
        """The number, changed when another process has written since the last look."""
        seen = self._data_version() if self._engine.dialect.name == "sqlite" else self._snapshot()
        if seen != self._seen:
            self._seen = seen
            self.number += 1
        return self.number

    def close(self) -> None:
        if self._sqlite is not None:
            self._sqlite.close()

    def _data_version(self) -> object:
        """Changes with every commit of another connection, asked on one and the same (SQLite)."""
        if self._sqlite is None:
            self._sqlite = self._engine.raw_connection()
        cursor = self._sqlite.cursor()
        cursor.execute("PRAGMA data_version")
        return cursor.fetchone()

    def _snapshot(self) -> object:
        """Which transactions are over: the same text, the same content (PostgreSQL)."""
        with self._engine.connect() as connection:
            return connection.scalar(sa.text("SELECT pg_current_snapshot()::text"))
