"""Connections to SQLite (in WAL mode) or PostgreSQL, by URL."""

from pathlib import Path
from typing import Any

import sqlalchemy as sa


def connect(url: str) -> sa.Engine:
    """An engine whose transactions on SQLite take the write lock at once when they mean to write.

    Without that, two SQLite transactions that read first and write later cannot both succeed.
    """
    location = sa.make_url(url)
    if location.get_backend_name() != "sqlite":
        return sa.create_engine(location, pool_pre_ping=True)
    if location.database:
        Path(location.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(location)

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin where SQLAlchemy says so
        for pragma in ("journal_mode=WAL", "busy_timeout=30000", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        write = connection.get_execution_options().get("write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine
