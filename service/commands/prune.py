"""`graftwork prune`: read a recipe, upload the texts that it names by path, start the job."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pruning.recipe import Recipe
from service.client import Client, Json
from service.commands.failure import CommandFailed, problems
from service.commands.follow import conclude, follow
from service.commands.uploads import upload

_TEXTS = ("calibration", "training", "evaluation")


def prune(url: str, path: Path, wait: bool) -> None:
    """Start the job of a recipe and, with `wait`, follow it to its end."""
    recipe = read_recipe(path)
    with Client(url) as client:
        job = submit(client, recipe, path.parent)
        print(job["id"])
        if wait:
            conclude(client, follow(client, job["id"]))
        else:
            print(f"follow it with: graftwork jobs events {job['id']} --follow")


def read_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file; CommandFailed names what is wrong in it."""
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise CommandFailed(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CommandFailed(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise CommandFailed(f"{path}: {problems(error)}; see docs/recipes.md") from error


def submit(client: Client, recipe: Recipe, folder: Path) -> Json:
    """Upload the texts of a recipe, whose paths are relative to `folder`, and start its job."""
    body: dict[str, Any] = recipe.model_dump(mode="json")
    origins = {place: (origin, _purpose(place)) for place, origin in _origins(body).items()}
    upload(client, origins, folder)
    return client.submit(body)


def _purpose(place: str) -> str:
    return "calibration" if place.startswith("fleet.") else place.partition(".")[0]


def _origins(body: Json) -> dict[str, Json]:
    """What names a file in the texts of a recipe, by its place there."""
    texts = {name: body[name] for name in _TEXTS if body[name]}
    fleet = body["fleet"]["texts"] if body["fleet"] else {}
    texts |= {f"fleet.texts.{name}": text for name, text in fleet.items()}
    sources = {
        f"{name}.sources.{i}": source
        for name, text in texts.items()
        for i, source in enumerate(text.get("sources", ()))
    }
    return texts | sources
