"""`graftwork tenants`: what each may take, on the database itself."""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from service.client import Json
from service.commands import database
from service.commands.failure import CommandFailed, problems
from service.commands.listing import show, tell
from service.quotas import Quota

_HINT = "`graftwork tenants list` shows what there is"


def list_tenants(as_json: bool) -> None:
    with database.catalog(_HINT) as catalog:
        rows = [
            {
                "tenant": name,
                "stored_bytes": view.stored_bytes(),
                "quota": view.quota().model_dump(),
            }
            for name, view in ((name, catalog.of(name)) for name in catalog.tenants())
        ]
    show(
        rows,
        {
            "TENANT": lambda row: row["tenant"],
            "STORED": lambda row: _number(row["stored_bytes"]),
            **{field.upper(): _limit(field) for field in Quota.model_fields},
        },
        as_json,
        empty="no tenant yet; create a key for one with: graftwork keys create TENANT",
    )


def quota(tenant: str, changes: Sequence[str], as_json: bool) -> None:
    """Change what a tenant may take, and print it."""
    with database.catalog(_HINT) as catalog:
        view = catalog.of(tenant)
        if changes:
            view.set_quota(_changed(view.own_quota(), changes))
        found = view.quota().model_dump()
    tell(found, _lines, as_json)


def _lines(quota: Json) -> str:
    return "\n".join(f"{name:<22} {_number(limit) or 'no limit'}" for name, limit in quota.items())


def _changed(own: Quota, changes: Sequence[str]) -> Quota:
    values: dict[str, Any] = own.model_dump(exclude_unset=True)
    for change in changes:
        name, _, value = change.partition("=")
        if value == "default":
            values.pop(name, None)
        else:
            values[name] = None if value == "none" else value
    try:
        return Quota.model_validate(values)
    except ValidationError as error:
        raise CommandFailed(
            f"{problems(error)}; write NAME=NUMBER, NAME=none or NAME=default, "
            f"where NAME is one of {', '.join(Quota.model_fields)}"
        ) from error


def _limit(field: str) -> Any:
    return lambda row: _number(row["quota"][field])


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
