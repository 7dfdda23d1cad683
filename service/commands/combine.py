"""`graftwork adapters merge`, `compress` and `lift`: start a job, show what survived."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from pruning.adapters.jobs import AdapterRecipe, CompressRecipe, Input, MergeRecipe, ProfileRecipe
from pruning.recipe import Method
from service.client import Client, Json
from service.commands.failure import CommandFailed, problems
from service.commands.follow import failed, follow


def combine(url: str, path: Path, kind: Literal["merge", "compress"], wait: bool) -> None:
    """Start the job of a recipe and, with `wait`, follow it to its end."""
    recipe = read_recipe(path, kind)
    with Client(url) as client:
        _run(client, recipe, wait)


def lift(url: str, model: str, name: str | None, wait: bool) -> None:
    """Merge one adapter of a slim base, as it is, onto the dense base: nothing but zeros is new."""
    slim, _, adapter = model.partition("+")
    with Client(url) as client:
        recipe = MergeRecipe(
            name=name or adapter,
            base=_parent(client, slim),
            sources=(Input(adapter=adapter, base=slim),),
            method=Method(name="cat"),
        )
        _run(client, recipe, wait)


def _parent(client: Client, slim: str) -> str:
    for base in client.bases():
        if base["id"] == slim and base["parent"]:
            return str(base["parent"])
    raise CommandFailed(f"{slim!r} is no slim base; name an adapter of one, as SLIM+NAME")


def _run(client: Client, recipe: MergeRecipe | CompressRecipe, wait: bool) -> None:
    job = client.submit_adapters(recipe.model_dump(mode="json"))
    print(job["id"])
    if not wait:
        print(f"follow it with: graftwork jobs events {job['id']} --follow")
        return
    job = follow(client, job["id"])
    if job["status"] != "succeeded":
        raise failed(job)
    for line in _lines(client.report(job["id"])):
        print(line)
    print(f"serves: {', '.join(job['result']['models'])}")


def read_recipe(path: Path, kind: Literal["merge", "compress"]) -> MergeRecipe | CompressRecipe:
    """The recipe in a YAML file; CommandFailed names what is wrong in it."""
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            content = {"kind": kind, **content}
        recipe = TypeAdapter(AdapterRecipe).validate_python(content)
    except OSError as error:
        raise CommandFailed(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CommandFailed(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise CommandFailed(f"{path}: {problems(error)}; see docs/adapters.md") from error
    if isinstance(recipe, ProfileRecipe) or recipe.kind != kind:
        raise CommandFailed(f"{path} is a recipe to {recipe.kind}; use that command")
    return recipe


def _lines(report: Json) -> list[str]:
    lines = []
    for result in report["results"]:
        rank = max(result["ranks"].values())
        lines.append(f"{result['name']}: rank {rank}, {result['bytes']:,} bytes")
        for task in result["tasks"]:
            kept = "not measured" if task["recovered"] is None else f"{task['recovered']:.0%}"
            lines.append(f"  of the gain of {task['source']}: {kept}")
    return lines
