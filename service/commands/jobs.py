"""`graftwork jobs`: list, show, follow and cancel pruning jobs."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from service.client import Client, Json
from service.commands.follow import conclude, follow
from service.commands.listing import column, show


def list_jobs(url: str, limit: int, as_json: bool) -> None:
    with Client(url) as client:
        empty = "no job yet; start one with: graftwork prune RECIPE.yaml"
        listed(client.jobs(limit), as_json, empty)


def listed(jobs: Sequence[Json], as_json: bool, empty: str) -> None:
    """Print jobs of whatever kind."""
    columns = {
        "JOB": column("id"),
        "BASE": column("model"),
        "MAKES": lambda row: row["recipe"]["name"],
        "STATUS": column("status"),
        "STAGE": column("stage"),
        "DONE": lambda row: f"{row['progress']:.0%}",
        "CREATED": lambda row: _time(row["created_at"]),
    }
    show(jobs, columns, as_json, empty)


def show_job(url: str, id: str) -> None:
    with Client(url) as client:
        print(json.dumps(client.job(id), indent=2))


def events(url: str, id: str, following: bool, as_json: bool) -> None:
    with Client(url) as client:
        if following and not as_json:
            conclude(client, follow(client, id))
            return
        for event in client.events(id) if following else client.past_events(id):
            print(json.dumps(event) if as_json else _line(event), flush=True)


def cancel(url: str, id: str) -> None:
    with Client(url) as client:
        print(f"{id}: {client.cancel(id)['status']}")


def _line(event: dict[str, Any]) -> str:
    stage = event["data"].get("stage", "")
    return f"{_time(event['created_at'])}  {stage:<10} {event['message']}"


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds).isoformat(sep=" ")
