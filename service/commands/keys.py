"""`graftwork keys`: on the database itself, so that the first key needs no server and no key."""

import time

from pydantic import ValidationError

from service.commands import database
from service.commands.failure import CommandFailed, problems
from service.commands.listing import column, show, tell
from service.keys import Key
from service.routes.keys import KeyObject, NewKey

_HINT = "`graftwork keys list` shows what there is"


def create(tenant: str, name: str, scopes: list[str], days: float | None, as_json: bool) -> None:
    """Print a new key, alone on standard output."""
    try:
        new = NewKey.model_validate(
            {"tenant": tenant, "name": name, "scopes": scopes, "days": days}
        )
    except ValidationError as error:
        raise CommandFailed(problems(error)) from error
    expires = None if new.days is None else int(time.time() + new.days * 86400)
    with database.catalog(_HINT) as catalog:
        made = catalog.add_key(new.tenant, new.name, new.scopes, expires)
    _tell(*made, as_json)


def list_keys(tenant: str | None, as_json: bool) -> None:
    with database.catalog(_HINT) as catalog:
        keys = [KeyObject.of(key).model_dump() for key in catalog.keys(tenant)]
    show(
        keys,
        {
            "KEY": lambda row: f"{row['prefix']}-…",
            "TENANT": column("tenant"),
            "NAME": column("name"),
            "SCOPES": lambda row: ",".join(row["scopes"]),
            "CREATED": lambda row: database.date(row["created"]),
            "LAST USED": lambda row: database.date(row["last_used"]),
            "ENDS": lambda row: database.date(row["revoked"] or row["expires"]),
        },
        as_json,
        empty="no key yet; create one with: graftwork keys create TENANT",
    )


def rotate(id: str, grace: int, as_json: bool) -> None:
    """Print the key that takes the place of another."""
    with database.catalog(_HINT) as catalog:
        made = catalog.rotate_key(id.removeprefix("gw-"), grace)
    _tell(*made, as_json)


def revoke(id: str, as_json: bool) -> None:
    with database.catalog(_HINT) as catalog:
        key = KeyObject.of(catalog.revoke_key(id.removeprefix("gw-")))
    tell(key.model_dump(), lambda gone: f"revoked {gone['prefix']}", as_json)


def _tell(key: Key, text: str, as_json: bool) -> None:
    tell({**KeyObject.of(key).model_dump(), "key": text}, lambda made: str(made["key"]), as_json)
