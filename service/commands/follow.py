"""Follow a job to its end: a progress bar per stage on a terminal, lines elsewhere."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from service.client import Client, Json
from service.commands.failure import CommandFailed

Show = Callable[[Json], None]


def run(
    client: Client,
    job: Json,
    wait: bool,
    as_json: bool,
    end: Callable[[Client, Json], None] | None = None,
) -> None:
    """Say that a job was started and, with `wait`, follow it to its end, which `end` tells of.

    As JSON it is the job alone, as it stands in the end.  CommandFailed unless it succeeded.
    """
    if not as_json:
        print(job["id"])
        if wait:
            (end or conclude)(client, follow(client, job["id"]))
        else:
            print(f"follow it with: graftwork jobs events {job['id']} --follow")
        return
    job = follow(client, job["id"], quiet=True) if wait else job
    print(json.dumps(job, indent=2))
    if wait and job["status"] != "succeeded":
        raise failed(job)


def follow(client: Client, id: str, quiet: bool = False) -> Json:
    """Show a job's events until it ends, and return it; Ctrl-C offers to cancel it."""
    try:
        with _silence() if quiet else _bars() if Console().is_terminal else _lines() as show:
            for event in client.events(id):
                show(event)
    except KeyboardInterrupt:
        _interrupted(client, id)
    return client.job(id)


def conclude(client: Client, job: Json) -> None:
    """Say how a job ended; CommandFailed unless it succeeded."""
    if job["status"] != "succeeded":
        raise failed(job)
    if job["pruned_model"] is None:  # a job on adapters
        if job["result"]["models"]:
            print(f"serves: {', '.join(job['result']['models'])}")
        print(f"report: {client.url}{job['result']['report']}")
        return
    print(summary(job["pruned_model"], client.report(job["id"])))
    print(f"serves: {', '.join(job['result']['models'])}")
    print(f"report: {client.url}{job['result']['report']}?format=html")


def failed(job: Json) -> CommandFailed:
    """Why a job did not succeed."""
    reason = f": {job['error']['message']}" if job["error"] else ""
    field = f" ({job['error']['param']})" if job["error"] and job["error"]["param"] else ""
    return CommandFailed(f"job {job['id']} {job['status']}{reason}{field}")


def summary(name: str, report: Json) -> str:
    """What a cut left, and what it cost, in a line."""
    slim, dense = report["slim"], report["dense"]
    return (
        f"{name}: {slim['size']['parameters']:,} of {dense['size']['parameters']:,} parameters, "
        f"perplexity per word {slim['quality']['word_perplexity']:.1f} "
        f"(was {dense['quality']['word_perplexity']:.1f})"
    )


def _interrupted(client: Client, id: str) -> None:
    # Without a terminal nobody can be asked; whoever stopped the command wants its work stopped.
    if not sys.stdin.isatty() or typer.confirm(f"\nCancel {id}?", default=False):
        client.cancel(id)
        return
    raise CommandFailed(f"{id} runs on; follow it with: graftwork jobs events {id} --follow")


@contextmanager
def _bars() -> Iterator[Show]:
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[message]}"),
    )
    with Progress(*columns) as progress:
        tasks: dict[str, TaskID] = {}

        def show(event: Json) -> None:
            stage = event["data"].get("stage")
            if stage is None:
                return
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=1.0, message="")
            progress.update(tasks[stage], **_bar(event))

        yield show


def _bar(event: Json) -> dict[str, Any]:
    if "seconds" in event["data"]:
        return {"completed": 1.0, "message": f"{event['data']['peak_rss_bytes'] / 2**30:.1f} GiB"}
    return {"completed": event["data"].get("fraction", 0.0), "message": event["message"]}


@contextmanager
def _silence() -> Iterator[Show]:
    yield lambda event: None


@contextmanager
def _lines() -> Iterator[Show]:
    def show(event: Json) -> None:
        if event["type"] != "progress":
            print(event["message"], flush=True)

    yield show
