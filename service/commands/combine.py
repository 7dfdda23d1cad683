"""`graftwork adapters merge`, `compress`, `compare`, `lift`, `generate` and the like: jobs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from pruning.adapters.jobs import (
    AdapterRecipe,
    AnyAdapterRecipe,
    CompareRecipe,
    Input,
    MergeRecipe,
)
from pruning.recipe import Method
from service.client import Client, Json
from service.commands.failure import CommandFailed
from service.commands.follow import failed, run
from service.commands.prune import read
from service.commands.uploads import upload

Kind = Literal["merge", "compress", "train_generator", "generate", "train"]


def combine(url: str, path: Path, kind: Kind, wait: bool, as_json: bool) -> None:
    """Start the job of a recipe and, with `wait`, follow it to its end.

    Rows that it names by path, relative to the recipe, are uploaded.
    """
    body: Json = read_recipe(path, kind).model_dump(mode="json")
    with Client(url) as client:
        upload(client, _origins(body), path.parent)
        _run(client, body, wait, as_json)


def _origins(body: Json) -> dict[str, tuple[Json, str]]:
    """The files of rows that a recipe names, by their place in it, each with its purpose."""
    tasks = {f"tasks.{name}": (rows, "training") for name, rows in body.get("tasks", {}).items()}
    examples = body.get("examples")
    if isinstance(examples, dict):
        tasks["examples"] = examples, "examples"
    for name in ("training", "validation"):
        if body.get(name):
            tasks[name] = body[name], name
    if body.get("forget"):
        tasks["forget.rows"] = body["forget"]["rows"], "training"
    return tasks


def lift(url: str, model: str, name: str | None, wait: bool, as_json: bool) -> None:
    """Merge one adapter of a slim base, as it is, onto the dense base: nothing but zeros is new."""
    slim, _, adapter = model.partition("+")
    with Client(url) as client:
        recipe = MergeRecipe(
            name=name or adapter,
            base=_parent(client, slim),
            sources=(Input(adapter=adapter, base=slim),),
            method=Method(name="cat"),
        )
        _run(client, recipe.model_dump(mode="json"), wait, as_json)


def compare(url: str, base: str, names: list[str], wait: bool, as_json: bool) -> None:
    """Measure how alike adapters of a base are: those named, or all."""
    recipe = CompareRecipe(base=base, adapters=tuple(names) or "all")
    with Client(url) as client:
        _run(client, recipe.model_dump(mode="json"), wait, as_json)


def _parent(client: Client, slim: str) -> str:
    for base in client.bases():
        if base["id"] == slim and base["parent"]:
            return str(base["parent"])
    raise CommandFailed(f"{slim!r} is no slim base; name an adapter of one, as SLIM+NAME")


def _run(client: Client, recipe: Json, wait: bool, as_json: bool) -> None:
    run(client, client.submit_adapters(recipe), wait, as_json, _conclude)


def _conclude(client: Client, job: Json) -> None:
    if job["status"] != "succeeded":
        raise failed(job)
    for line in _LINES[job["recipe"]["kind"]](client.report(job["id"])):
        print(line)
    if job["result"]["models"]:
        print(f"serves: {', '.join(job['result']['models'])}")


def read_recipe(path: Path, kind: Kind) -> AnyAdapterRecipe:
    """The recipe in a YAML file; CommandFailed names what is wrong in it."""

    def validated(content: Any) -> AnyAdapterRecipe:
        named = {"kind": kind, **content} if isinstance(content, dict) else content
        return TypeAdapter[AnyAdapterRecipe](AdapterRecipe).validate_python(named)

    recipe = read(validated, path, f"docs/{_PAGES[kind]}.md")
    if recipe.kind != kind:
        raise CommandFailed(f"{path} is a recipe to {recipe.kind}; use that command")
    return recipe


def _combined(report: Json) -> list[str]:
    lines = []
    for result in report["results"]:
        rank = max(result["ranks"].values())
        lines.append(f"{result['name']}: rank {rank}, {result['bytes']:,} bytes")
        for task in result["tasks"]:
            lines.append(f"  of the gain of {task['source']}: {_percent(task['recovered'])}")
    return lines


def _trained(report: Json) -> list[str]:
    size = f"{report['bytes']:,} bytes, as many as {report['break_even']} adapters"
    lines = [f"{report['recipe']['name']}: {len(report['tasks'])} tasks, {size}"]
    for task in report["tasks"]:
        lines.append(f"  of the gain of {task['task']}: {_percent(task['recovered'])}")
    return lines


def _generated(report: Json) -> list[str]:
    made, name = report["generated"], report["recipe"]["name"]
    distance = f"distance {made['distance']:.3f} of {made['largest_distance']:.3f}"
    lines = [f"{name}: nearest task {made['nearest_task']}, {distance}"]
    if report["base"] is not None:
        best = report["losses"][made["sample"]]
        examples = f"on the {report['examples']} examples"
        lines.append(f"  loss {examples}: {best:.3f}, of the base {report['base']:.3f}")
    return lines


def _adapted(report: Json) -> list[str]:
    name, rows = report["recipe"]["name"], report["rows"]["validation"]
    size = f"{report['parameters']:,} numbers trained, {report['bytes']:,} bytes"
    lines = [f"{name}: rank {max(report['ranks'].values())}, {size}"]
    losses = [check["validation"] for check in report["curve"]]
    lines.append(f"  {plot([report['base'], *losses])} validation loss, {report['steps']} steps")
    measured = f"{report['result']:.3f}, of the base {report['base']:.3f}"
    lines.append(f"  loss on {rows} validation rows: {measured}")
    if report["forget_base"] is not None:
        forgot = f"{report['forget_result']:.3f}, of the base {report['forget_base']:.3f}"
        lines.append(f"  loss on what is to be forgotten: {forgot}")
    return lines


def plot(losses: Sequence[float]) -> str:
    """Losses as bars, one character each, from the lowest to the highest."""
    low, high = min(losses), max(losses)
    steps = len(_BARS) - 1
    return "".join(_BARS[round(steps * (loss - low) / ((high - low) or 1))] for loss in losses)


_BARS = "▁▂▃▄▅▆▇█"


def _compared(report: Json) -> list[str]:
    names, lines = report["names"], []
    for i, name in enumerate(names):
        cosines = zip(names[i + 1 :], report["cosines"][i][i + 1 :], strict=True)
        lines += [f"{name} and {other}: {_cosine(cosine)}" for other, cosine in cosines]
    return lines


def _cosine(value: float | None) -> str:
    return "one of them adds nothing" if value is None else f"{value:.3f}"


def _percent(recovered: float | None) -> str:
    return "not measured" if recovered is None else f"{recovered:.0%}"


_PAGES = {
    "merge": "adapters",
    "compress": "adapters",
    "train_generator": "generation",
    "generate": "generation",
    "train": "training",
}
_LINES: dict[str, Callable[[Json], list[str]]] = {
    "merge": _combined,
    "compress": _combined,
    "compare": _compared,
    "train_generator": _trained,
    "generate": _generated,
    "train": _adapted,
}
