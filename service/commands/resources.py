"""`graftwork bases`, `adapters` and `models`: what the server knows and serves."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from service.client import Client, Json
from service.commands.failure import CommandFailed
from service.commands.follow import summary
from service.commands.listing import column, show, tell


def list_bases(url: str, as_json: bool) -> None:
    with Client(url) as client:
        show(
            client.bases(),
            {
                "BASE": column("id"),
                "FAMILY": column("family"),
                "PARAMETERS": lambda row: f"{row['parameters']:,}",
                "LAYERS": column("layers"),
                "PARENT": column("parent"),
                "STATE": _state,
                "PATH": column("path"),
            },
            as_json,
            empty="no base yet; register one with: graftwork bases add NAME DIRECTORY",
        )


def add_base(url: str, name: str, path: Path, serve: bool, as_json: bool) -> None:
    with Client(url) as client:
        base = client.add_base(name, path.absolute(), serve)
    tell(base, lambda b: f"{b['id']}: {b['family']}, {b['parameters']:,} parameters", as_json)


def remove_base(url: str, name: str, as_json: bool) -> None:
    with Client(url) as client:
        tell(client.delete_base(name), _removed, as_json)


def report(url: str, name: str, as_json: bool) -> None:
    """What the job that made a slim base measured: the base, then each adapter."""
    with Client(url) as client:
        found = client.base_report(name)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    print(summary(name, found))
    print(f"{found['delta_nats']:+.3f} nats per token over {found['recipe']['base']}")
    show(
        found["adapters"],
        {
            "ADAPTER": column("name"),
            "ROWS": column("rows"),
            "DENSE BASE": _loss("dense_base"),
            "WITH IT": _loss("dense_adapter"),
            "SLIM BASE": _loss("slim_base"),
            "WITH THE CARRIED": _loss("slim_adapter"),
        },
        as_json,
        empty="no adapter was carried",
    )


def list_adapters(url: str, base: str | None, as_json: bool) -> None:
    with Client(url) as client:
        show(
            client.adapters(base),
            {
                "MODEL": column("id"),
                "BASE": column("base"),
                "RANK": column("rank"),
                "DIGEST": lambda row: row["digest"][:12],
            },
            as_json,
            empty="no adapter yet; register one with: "
            "graftwork adapters add NAME DIRECTORY --base BASE",
        )


def add_adapter(url: str, name: str, directory: Path, base: str, as_json: bool) -> None:
    if not directory.is_dir():
        raise CommandFailed(f"{directory} is not a directory; name one as PEFT saves them")
    with Client(url) as client:
        adapter = client.upload_adapter(name, base, directory)
    tell(adapter, lambda a: f"{a['id']}: rank {a['rank']}, {a['digest'][:12]}", as_json)


def remove_adapter(url: str, id: str, as_json: bool) -> None:
    with Client(url) as client:
        tell(client.delete_adapter(id), _removed, as_json)


def list_generators(url: str, base: str | None, as_json: bool) -> None:
    with Client(url) as client:
        show(
            client.generators(base),
            {
                "GENERATOR": column("name"),
                "BASE": column("base"),
                "DIGEST": lambda row: row["digest"][:12],
            },
            as_json,
            empty="no generator yet; train one with: graftwork adapters train-generator RECIPE",
        )


def list_models(url: str, as_json: bool) -> None:
    with Client(url) as client:
        show(
            client.models(),
            {
                "MODEL": column("id"),
                "PARENT": column("parent"),
                "READY": lambda row: "yes" if row["ready"] else "not yet",
            },
            as_json,
            empty="nothing is served yet; register a base with: graftwork bases add NAME DIRECTORY",
        )


def _removed(gone: Json) -> str:
    return f"removed {gone['id']}"


def _loss(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: "" if row[key] is None else f"{row[key]:.3f}"


def _state(row: object) -> str:
    assert isinstance(row, dict)
    if not row["serve"]:
        return "not served"
    return "ready" if row["ready"] else "starting"
