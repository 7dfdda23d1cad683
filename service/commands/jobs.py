"""`graftwork jobs`: list, show, follow and cancel jobs of whatever kind."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from service.client import Client, Json
from service.commands.follow import conclude, follow
from service.commands.listing import column, show, state, tell


def list_jobs(url: str, limit: int, as_json: bool) -> None:
    with Client(url) as client:
        empty = "no job yet; start one with: graftwork prune RECIPE.yaml"
        listed(client.all_jobs(limit), as_json, empty)


def listed(jobs: Sequence[Json], as_json: bool, empty: str) -> None:
    """Print jobs of whatever kind."""
    columns = {
        "JOB": column("id"),
        "BASE": column("model"),
        "MAKES": lambda row: row["recipe"].get("name") or row["recipe"]["kind"],
        "STATUS": state("status"),
        "STAGE": column("stage"),
        "DONE": lambda row: f"{row['progress']:.0%}",
        "CREATED": lambda row: _time(row["created_at"]),
    }
    show(jobs, columns, as_json, empty)


def show_job(url: str, id: str, as_json: bool) -> None:
    with Client(url) as client:
        tell(client.job(id), _story, as_json)


def events(url: str, id: str, following: bool, as_json: bool) -> None:
    with Client(url) as client:
        if following and not as_json:
            conclude(client, follow(client, id))
            return
        for event in client.events(id) if following else client.past_events(id):
            print(json.dumps(event) if as_json else _line(event), flush=True)


def checkpoints(url: str, id: str, as_json: bool) -> None:
    columns = {
        "STEP": column("step_number"),
        "TRAINING": lambda row: f"{row['metrics']['train_loss']:.4f}",
        "VALIDATION": lambda row: f"{row['metrics']['valid_loss']:.4f}",
        "SERVED AS": column("fine_tuned_model_checkpoint"),
    }
    with Client(url) as client:
        show(client.checkpoints(id), columns, as_json, "no checkpoint yet, or no training")


def cancel(url: str, id: str, as_json: bool) -> None:
    with Client(url) as client:
        tell(client.cancel(id), lambda job: f"{job['id']}: {job['status']}", as_json)


def _story(job: Json) -> str:
    """A job in some lines, the last of them what to type next."""
    makes = job["recipe"].get("name") or job["recipe"]["kind"]
    lines = [f"{job['id']}: {makes}, of {job['model']}", f"created {_time(job['created_at'])}"]
    lines.append(f"{job['status']}, {job['progress']:.0%} done")
    if job["stage"]:
        place = job["stages"].index(job["stage"]) + 1
        lines[-1] += f", in stage {job['stage']} ({place} of {len(job['stages'])})"
    if job["error"]:
        field = f"{job['error']['param']}: " if job["error"]["param"] else ""
        lines.append(f"{field}{job['error']['message']}")
    if job["finished_at"] and job["started_at"]:
        lines.append(f"took {job['finished_at'] - job['started_at']:,} s")
    if job["status"] in ("queued", "running"):
        lines.append(f"follow it with: graftwork jobs events {job['id']} --follow")
    if job["pruned_model"]:
        lines.append(f"what it measured: graftwork bases report {job['pruned_model']}")
    return "\n".join(lines)


def _line(event: dict[str, Any]) -> str:
    stage = event["data"].get("stage", "")
    return f"{_time(event['created_at'])}  {stage:<10} {event['message']}"


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds).isoformat(sep=" ")
