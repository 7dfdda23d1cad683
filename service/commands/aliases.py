"""`graftwork aliases`: names for bases that are promoted and rolled back."""

from service.client import Client, Json
from service.commands.listing import column, show, tell


def list_aliases(url: str, as_json: bool) -> None:
    with Client(url) as client:
        show(
            client.aliases(),
            {
                "ALIAS": column("id"),
                "STANDS FOR": column("base"),
                "BEFORE": lambda row: " ".join(row["before"]),
            },
            as_json,
            empty="no alias yet; make one with: graftwork aliases promote NAME BASE",
        )


def promote(url: str, name: str, base: str, as_json: bool) -> None:
    with Client(url) as client:
        tell(client.promote(name, base), _line, as_json)


def roll_back(url: str, name: str, as_json: bool) -> None:
    with Client(url) as client:
        tell(client.roll_back(name), _line, as_json)


def remove(url: str, name: str, as_json: bool) -> None:
    with Client(url) as client:
        tell(client.delete_alias(name), lambda gone: f"removed {gone['id']}", as_json)


def _line(alias: Json) -> str:
    before = f", before for {alias['before'][-1]}" if alias["before"] else ""
    return f"{alias['id']} stands for {alias['base']}{before}"
