"""`graftwork audit`: who changed what, on the database itself."""

from dataclasses import asdict

from service.commands import database
from service.commands.listing import column, show


def list_changes(tenant: str | None, limit: int, as_json: bool) -> None:
    with database.catalog("check GRAFTWORK_DATABASE_URL") as catalog:
        rows = [asdict(change) for change in catalog.changes(tenant, limit=limit)]
    show(
        rows,
        {
            "WHEN": lambda row: database.date(row["created"]),
            "TENANT": column("tenant"),
            "ACTION": column("action"),
            "OBJECT": column("object"),
            "BY": column("by"),
            "KEY": lambda row: f"gw-{row['key']}" if row["key"] else "",
            "REQUEST": column("request_id"),
        },
        as_json,
        empty="nothing has changed yet",
    )
