"""`graftwork preview` and `methods`: what a recipe would leave, and what it can name."""

from pathlib import Path

from service.client import Client, Json
from service.commands.listing import show, tell
from service.commands.prune import read_recipe


def preview(url: str, path: Path, as_json: bool) -> None:
    """Print what the recipe would leave of its base; nothing runs, and no text is uploaded."""
    recipe = read_recipe(path)
    with Client(url) as client:
        told = client.preview(recipe.model_dump(mode="json"))
    tell(told, lambda _: _lines(recipe.base, told), as_json)


def _lines(base: str, told: Json) -> str:
    dense, slim = told["dense"], told["slim"]
    lines = [] if slim is None else [f"of {base} would be left:"]
    for name, entry in _ENTRIES.items() if slim else ():
        before, after = dense[entry], slim[entry]
        lines.append(f"  {name:<26} {after:>15,} of {before:>15,}  {after / before - 1:+.1%}")
    if told["exact"]:
        widths = sorted({(layer["heads"], layer["ffn_channels"]) for layer in told["layers"]})
        for heads, channels in widths:
            lines.append(f"  each layer {heads} heads and {channels:,} FFN channels")
    return "\n".join([*lines, *told["notes"]])


_ENTRIES = {
    "parameters": "parameters",
    "bytes of weights": "weight_bytes",
    "KV cache values per token": "kv_cache_values_per_token",
}


def methods(url: str, kind: str | None, as_json: bool) -> None:
    with Client(url) as client:
        show(
            client.methods(kind),
            {
                "KIND": lambda row: row["kind"],
                "METHOD": lambda row: row["name"],
                "WHAT IT DOES": lambda row: row["summary"],
                "PARAMETERS": lambda row: ", ".join(row["parameters"]),
                "PAPER": lambda row: row["paper"]["url"],
            },
            as_json,
            empty="no method of this kind",
        )
