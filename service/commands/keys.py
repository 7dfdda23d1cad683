"""`graftwork keys`: on the database itself, so that the first key needs no server and no key."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from pydantic import ValidationError

from service.catalog import Catalog
from service.commands import configuration
from service.commands.failure import CommandFailed, problems
from service.commands.listing import column, show
from service.errors import GraftworkError
from service.routes.keys import KeyObject, NewKey


def create(tenant: str, name: str, scopes: list[str], days: float | None) -> None:
    """Print a new key, alone on standard output."""
    try:
        new = NewKey.model_validate(
            {"tenant": tenant, "name": name, "scopes": scopes, "days": days}
        )
    except ValidationError as error:
        raise CommandFailed(problems(error)) from error
    expires = None if new.days is None else int(time.time() + new.days * 86400)
    with _catalog() as catalog:
        _, text = catalog.add_key(new.tenant, new.name, new.scopes, expires)
    print(text)


def list_keys(tenant: str | None, as_json: bool) -> None:
    with _catalog() as catalog:
        keys = [KeyObject.of(key).model_dump() for key in catalog.keys(tenant)]
    show(
        keys,
        {
            "KEY": lambda row: f"{row['prefix']}-…",
            "TENANT": column("tenant"),
            "NAME": column("name"),
            "SCOPES": lambda row: ",".join(row["scopes"]),
            "CREATED": lambda row: _date(row["created"]),
            "LAST USED": lambda row: _date(row["last_used"]),
            "ENDS": lambda row: _date(row["revoked"] or row["expires"]),
        },
        as_json,
        empty="no key yet; create one with: graftwork keys create TENANT",
    )


def rotate(id: str, grace: int) -> None:
    """Print the key that takes the place of another."""
    with _catalog() as catalog:
        _, text = catalog.rotate_key(id.removeprefix("gw-"), grace)
    print(text)


def revoke(id: str) -> None:
    with _catalog() as catalog:
        print(f"revoked {catalog.revoke_key(id.removeprefix('gw-')).prefix}")


@contextmanager
def _catalog() -> Iterator[Catalog]:
    catalog = Catalog(configuration.load().database)
    try:
        yield catalog
    except GraftworkError as error:
        raise CommandFailed(f"{error}; `graftwork keys list` shows what there is") from error
    finally:
        catalog.close()


def _date(seconds: int | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds).isoformat(" ", "minutes")
