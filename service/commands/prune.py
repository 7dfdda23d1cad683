"""`graftwork prune`: start the job of a recipe, its texts uploaded, or of a cell of a sweep."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pruning.recipe import Recipe
from service.client import Client, Json
from service.commands.failure import CommandFailed, problems
from service.commands.follow import run
from service.commands.uploads import upload

Read = TypeVar("Read", bound=BaseModel)

_TEXTS = ("calibration", "training", "evaluation")


def start(
    url: str, path: Path | None, sweep: str | None, choice: Json, wait: bool, as_json: bool
) -> None:
    """Start the job of a recipe or of a cell of a sweep; CommandFailed unless it is one of both."""
    said = {name: value for name, value in choice.items() if value is not None}
    if path and not sweep and not said:
        prune(url, path, wait, as_json)
    elif sweep and not path and said.keys() - {"name"}:
        from_sweep(url, sweep, said, wait, as_json)
    else:
        raise CommandFailed(
            "give a recipe, or --from-sweep JOB with one of --target-bytes, --target-latency and "
            "--max-loss"
        )


def prune(url: str, path: Path, wait: bool, as_json: bool) -> None:
    """Start the job of a recipe and, with `wait`, follow it to its end."""
    recipe = read_recipe(path)
    with Client(url) as client:
        run(client, submit(client, recipe, path.parent), wait, as_json)


def from_sweep(url: str, sweep: str, choice: Json, wait: bool, as_json: bool) -> None:
    """Start the job of the cell of a sweep that fits best and, with `wait`, follow it."""
    with Client(url) as client:
        run(client, client.choose(sweep, choice), wait, as_json)


def read_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file; CommandFailed names what is wrong in it."""
    return read(Recipe.model_validate, path, "docs/recipes.md")


def read(validated: Callable[[Any], Read], path: Path, page: str) -> Read:
    """What a YAML file holds, validated; CommandFailed names what is wrong, and a page."""
    try:
        return validated(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        reason = f"{path} cannot be read: {error.strerror}"
        raise CommandFailed(f"{reason}; name a YAML file as {page} shows it") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CommandFailed(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise CommandFailed(f"{path}: {problems(error)}; see {page}") from error


def submit(client: Client, recipe: Recipe, folder: Path) -> Json:
    """Upload the texts of a recipe, whose paths are relative to `folder`, and start its job."""
    body: dict[str, Any] = recipe.model_dump(mode="json")
    upload(client, origins(body), folder)
    return client.submit(body)


def origins(body: Json) -> dict[str, tuple[Json, str]]:
    """What names a file in the texts of a recipe, by its place there, each with its purpose."""
    return {place: (origin, _purpose(place)) for place, origin in _origins(body).items()}


def _purpose(place: str) -> str:
    return "calibration" if place.startswith("fleet.") else place.partition(".")[0]


def _origins(body: Json) -> dict[str, Json]:
    texts = {name: body[name] for name in _TEXTS if body.get(name)}
    fleet = (body.get("fleet") or {}).get("texts") or {}
    texts |= {f"fleet.texts.{name}": text for name, text in fleet.items()}
    sources = {
        f"{name}.sources.{i}": source
        for name, text in texts.items()
        for i, source in enumerate(text.get("sources", ()))
    }
    return texts | sources
