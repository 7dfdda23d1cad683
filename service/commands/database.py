"""The catalog of this machine's database, for commands that need no server."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from service.catalog import Catalog
from service.commands import configuration
from service.commands.failure import CommandFailed
from service.errors import GraftworkError


@contextmanager
def catalog(hint: str) -> Iterator[Catalog]:
    """The catalog, open; `hint` ends the line of what it refuses."""
    settings = configuration.load()
    opened = Catalog(settings.database, settings.quota)
    try:
        yield opened
    except GraftworkError as error:
        raise CommandFailed(f"{error}; {hint}") from error
    finally:
        opened.close()


def date(seconds: int | None) -> str:
    """A time for people; nothing for None."""
    return "" if seconds is None else datetime.fromtimestamp(seconds).isoformat(" ", "minutes")
