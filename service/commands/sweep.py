"""`graftwork sweep`: try a grid of recipes in one job, and show which of them are worth having."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pruning.sweeps.recipe import SweepRecipe, brief
from service.client import Client, Json
from service.commands import follow
from service.commands.failure import CommandFailed
from service.commands.follow import failed
from service.commands.jobs import listed
from service.commands.listing import show
from service.commands.prune import origins, read
from service.commands.uploads import upload


def run(url: str, path: Path, wait: bool, as_json: bool) -> None:
    """Start the sweep of a recipe and, with `wait`, follow it to its end and show the front."""
    recipe = read(SweepRecipe.model_validate, path, "docs/sweeps.md")
    recipe.cells()  # what is wrong in them is said before anything is uploaded
    body = recipe.model_dump(mode="json")
    with Client(url) as client:
        upload(client, _origins(body), path.parent)
        follow.run(client, client.submit_sweep(body), wait, as_json, _conclude)


def _conclude(client: Client, job: Json) -> None:
    if job["status"] != "succeeded":
        raise failed(job)
    _show(client.report(job["id"]), whole=False, as_json=False)
    print(f"report: {client.url}{job['result']['report']}?format=html")


def list_sweeps(url: str, limit: int, as_json: bool) -> None:
    with Client(url) as client:
        empty = "no sweep yet; start one with: graftwork sweep run RECIPE.yaml"
        listed(client.sweeps(limit), as_json, empty)


def show_sweep(url: str, id: str, whole: bool, as_json: bool) -> None:
    """Print the front of a sweep that succeeded, or all of its cells."""
    with Client(url) as client:
        job = client.job(id)
        if job["object"] != "sweep.job":
            raise CommandFailed(f"{id} is no sweep; `graftwork sweep list` shows them")
        if job["status"] in ("failed", "cancelled"):
            raise failed(job)
        if job["status"] != "succeeded":
            raise CommandFailed(
                f"{id} is {job['status']}, {job['progress']:.0%} done; follow it with: "
                f"graftwork jobs events {id} --follow"
            )
        _show(client.report(id), whole, as_json)


def _show(report: Json, whole: bool, as_json: bool) -> None:
    cells = {cell["number"]: cell for cell in report["cells"]}
    ordered = sorted(cells.values(), key=lambda cell: (cell["bytes"], cell["delta_nats"]))
    rows = ordered if whole else [cells[number] for number in report["front"]]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    columns = {
        "CELL": lambda row: row["number"],
        **{name.upper(): _change(name) for name in sorted(report["recipe"]["grid"])},
        "PARAMETERS": lambda row: f"{row['parameters']:,}",
        "BYTES": lambda row: f"{row['bytes']:,}",
        "NATS": lambda row: f"{row['delta_nats']:+.3f}",
        "KL": lambda row: f"{row['divergence']:.3f}",
        **{name: _adapter(name) for name in report["dense"]["adapters"]},
    }
    if report["recipe"]["latency"]:
        columns["MS"] = lambda row: f"{row['latency_ms']:.3f}"
    if whole:
        columns["DOMINATED BY"] = lambda row: _or_empty(row["dominated_by"])
    show(rows, columns, as_json=False, empty="no cell could be made")
    for cell in report["failed"]:
        print(f"cell {cell['number']} could not be made: {cell['param']}: {cell['message']}")


def _change(name: str) -> Any:
    return lambda row: brief(row["changes"][name])


def _adapter(name: str) -> Any:
    def loss(row: Mapping[str, Any]) -> str:
        found = row["adapters"].get(name)
        return "" if found is None else f"{found:.3f}"

    return loss


def _or_empty(value: object) -> object:
    return "" if value is None else value


def _origins(body: Json) -> dict[str, tuple[Json, str]]:
    """What names a file in the texts of a sweep, in the grid and beside it, with its purpose."""
    found = origins(body)
    for name, values in body["grid"].items():
        for i, value in enumerate(values):
            inner = origins({name: value})
            found |= {f"grid.{name}.{i}{place.removeprefix(name)}": o for place, o in inner.items()}
    return found
