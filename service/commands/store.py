"""`graftwork verify` and `gc`: what lies on disk, against the catalog; no server is needed."""

from dataclasses import asdict

import typer

from service import verification
from service.collection import Collector
from service.commands import configuration, database
from service.commands.listing import column, show
from service.jobs import Jobs

_HINT = "check GRAFTWORK_HOME and GRAFTWORK_DATABASE_URL"


def verify(repair: bool, as_json: bool) -> None:
    """Exit with 1 when something is missing or damaged; what is orphaned does no harm."""
    settings = configuration.load()
    with database.catalog(_HINT) as catalog:
        findings = list(verification.verify(settings, catalog))
    rows = [{**asdict(one), "path": str(one.path), "quarantine": None} for one in findings]
    for row, one in zip(rows, findings, strict=True):
        if repair and (aside := verification.quarantine(settings, one)) is not None:
            row["quarantine"] = str(aside)
    columns = {name.upper(): column(name) for name in ("kind", "path", "message", "quarantine")}
    show(rows, columns, as_json, empty="catalog and disk agree")
    if any(one.kind != "orphaned" for one in findings):
        raise typer.Exit(1)


def gc(dry_run: bool, hours: float, as_json: bool) -> None:
    settings = configuration.load()
    with database.catalog(_HINT) as catalog:
        jobs = Jobs(settings, catalog)
        try:
            found = list(Collector(settings, catalog, jobs, dry_run).collect(hours * 3600))
        finally:
            jobs.close()
    rows = [{**asdict(one), "path": str(one.path)} for one in found]
    columns = {name.upper(): column(name) for name in ("bytes", "reason", "path")}
    show(rows, columns, as_json, empty="there is no garbage")
