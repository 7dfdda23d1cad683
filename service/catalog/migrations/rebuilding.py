"""Tables made anew around the rows that they had: the same on SQLite and PostgreSQL."""

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

Row = dict[str, Any]


def rebuild(
    connection: sa.Connection, tables: sa.MetaData, change: Callable[[str, Row], Row]
) -> None:
    """Replace those of `tables` that are there; `change(table, row)` is a row of the new one."""
    there = set(sa.inspect(connection).get_table_names())
    old = sa.MetaData()
    old.reflect(connection, only=[name for name in tables.tables if name in there])
    rows = {
        table.name: [dict(row) for row in connection.execute(table.select()).mappings()]
        for table in old.sorted_tables
    }
    old.drop_all(connection)
    tables.create_all(connection)
    for table in tables.sorted_tables:
        if changed := [change(table.name, row) for row in rows.get(table.name, [])]:
            connection.execute(table.insert(), changed)
