"""`graftwork bases`, `adapters` and `models`: what the server knows and serves."""

from pathlib import Path

from service.client import Client
from service.commands.failure import CommandFailed
from service.commands.listing import column, show


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


def add_base(url: str, name: str, path: Path, serve: bool) -> None:
    with Client(url) as client:
        base = client.add_base(name, path.absolute(), serve)
    print(f"{base['id']}: {base['family']}, {base['parameters']:,} parameters")


def remove_base(url: str, name: str) -> None:
    with Client(url) as client:
        print(f"removed {client.delete_base(name)['id']}")


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


def add_adapter(url: str, name: str, directory: Path, base: str) -> None:
    if not directory.is_dir():
        raise CommandFailed(f"{directory} is not a directory; name one as PEFT saves them")
    with Client(url) as client:
        adapter = client.upload_adapter(name, base, directory)
    print(f"{adapter['id']}: rank {adapter['rank']}, {adapter['digest'][:12]}")


def remove_adapter(url: str, id: str) -> None:
    with Client(url) as client:
        print(f"removed {client.delete_adapter(id)['id']}")


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


def _state(row: object) -> str:
    assert isinstance(row, dict)
    if not row["serve"]:
        return "not served"
    return "ready" if row["ready"] else "starting"
