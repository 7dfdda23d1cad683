"""Connections to SQLite (in WAL mode) or PostgreSQL, by URL, and writers that take turns."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

_WRITER_LOCK = 0x67726166  # key of the PostgreSQL advisory lock that writers hold


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


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction beside which no other one writes."""
    with engine.execution_options(write=True).begin() as connection:
        _take_turn(connection)
        yield connection


@contextmanager
def migrating(engine: sa.Engine) -> Iterator[sa.Connection]:
    """The same for changes of tables: on SQLite references are checked at the end alone.

    There a table is changed by making it anew, which those that refer to it would forbid.
    """
    if engine.dialect.name != "sqlite":
        with writing(engine) as connection:
            yield connection
        return
    with engine.execution_options(write=True).connect() as connection:
        _pragma(connection, "foreign_keys=OFF")  # which SQLite ignores within a transaction
        try:
            with connection.begin():
                yield connection
                if broken := connection.exec_driver_sql("PRAGMA foreign_key_check").all():
                    raise AssertionError(f"rows refer to what is not there: {broken}")
        finally:
            _pragma(connection, "foreign_keys=ON")


def _take_turn(connection: sa.Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_WRITER_LOCK)))


def _pragma(connection: sa.Connection, text: str) -> None:
    assert connection.connection.dbapi_connection is not None
    connection.connection.dbapi_connection.cursor().execute(f"PRAGMA {text}")
