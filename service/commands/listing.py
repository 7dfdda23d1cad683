"""Lists for people and, with --json, for programs."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

Columns = Mapping[str, Callable[[Mapping[str, Any]], object]]

_PIPED_WIDTH = 1000  # one line a row, however long


def show(rows: Sequence[Mapping[str, Any]], columns: Columns, as_json: bool, empty: str) -> None:
    """Print rows as a table with these columns, or whole as JSON; `empty` says how to get some."""
    if as_json:
        print(json.dumps(rows, indent=2))
    elif not rows:
        print(empty)
    else:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for name in columns:
            table.add_column(name, overflow="fold")  # what is cut off cannot be copied
        for row in rows:
            table.add_row(*(_text(cell(row)) for cell in columns.values()))
        Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH).print(table)


def tell(thing: Mapping[str, Any], line: Callable[[Any], str], as_json: bool) -> None:
    """Print one thing as a line, or whole as JSON."""
    print(json.dumps(thing, indent=2) if as_json else line(thing))


def state(key: str) -> Callable[[Mapping[str, Any]], Text]:
    """A column that shows how something stands, in the color of that."""
    return lambda row: Text(str(row[key]), style=_STYLES.get(row[key], ""))


_STYLES = {"succeeded": "green", "running": "blue", "failed": "red", "cancelled": "dim"}


def _text(cell: object) -> Text:
    """A cell as it is: brackets in names are no markup."""
    return cell if isinstance(cell, Text) else Text(str(cell))


def column(key: str) -> Callable[[Mapping[str, Any]], object]:
    """A column that shows an entry of the row; nothing for null."""
    return lambda row: "" if row[key] is None else row[key]
