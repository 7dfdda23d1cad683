"""README and docs: every command, path, setting, field and request that they name exists."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter
from typer.main import get_command

from pruning.adapters.generate.recipes import (
    Families,
    GenerateRecipe,
    Network,
    TrainGeneratorRecipe,
)
from pruning.adapters.jobs import AdapterRecipe, CompressRecipe, MergeRecipe
from pruning.adapters.train.recipes import Forgetting, Hyperparameters, TrainRecipe
from pruning.methods import ENTRIES
from pruning.recipe import Recipe
from pruning.sweeps.choice import Choice
from pruning.sweeps.recipe import SweepRecipe
from service.app import create_app
from service.cli import app
from service.commands import demo
from service.settings import Settings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BUNDLED = yaml.safe_load((ROOT / "deploy/demo/recipe.yaml").read_text())
OTHERS = {  # recipes by an entry that no other has
    "sources": MergeRecipe,
    "tasks": TrainGeneratorRecipe,
    "generator": GenerateRecipe,
    "grid": SweepRecipe,
    "hyperparameters": TrainRecipe,
}
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The paths of the gateway's OpenAPI document."""
    gateway = create_app(Settings(home=tmp_path_factory.mktemp("home")))
    gateway.state.jobs.close()
    gateway.state.catalog.close()
    return dict(gateway.openapi()["paths"])


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """Every command line of a page, in blocks and inline, as words."""
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines] + [i.split() for i in inline]
    return [command for command in words if command]


def rows(page: str) -> list[list[str]]:
    """The rows of all tables of a page in docs/, as cells."""
    lines = (ROOT / "docs" / page).read_text().splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]


@each_page
def test_links_lead_to_files(page: Path):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        led = page.parent / path if path else page
        assert target.startswith("https://") or led.exists(), target
        if not target.startswith("https://") and anchor:
            assert anchor in headings(led), target


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them of headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@each_page
def test_make_targets_exist(page: Path):
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {command[1] for command in commands(page) if command[0] == "make"}
    assert named <= targets


@each_page
def test_scripts_and_folders_that_are_named_exist(page: Path):
    first_parts = {path.name for path in ROOT.iterdir()}
    for path in re.findall(r"`([\w.-]+/[\w./-]*)", page.read_text()):
        if path.partition("/")[0] in first_parts:
            assert (ROOT / path).exists(), path


@each_page
def test_commands_of_graftwork_exist_and_take_these_options(page: Path):
    for words in commands(page):
        if "graftwork" in words[:1] or words[:4] == ["docker", "compose", "exec", "gateway"]:
            assert_accepted(words[words.index("graftwork") + 1 :])
        if words[:2] == ["kubectl", "exec"]:
            assert_accepted(words[words.index("--") + 2 :])


def assert_accepted(words: list[str]) -> None:
    command: Any = get_command(app)
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, f"graftwork has no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= options


def test_the_readme_shows_the_request_that_the_demo_prints():
    (line,) = re.findall(r"^curl .*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    _, url, *_, data = shlex.split(line)
    assert url == f"http://127.0.0.1:{Settings.model_fields['port'].default}/v1/completions"
    assert json.loads(data) == demo.request(BUNDLED["name"], ROOT / "deploy/demo")


@each_page
def test_recipes_that_are_shown_are_recipes(page: Path):
    for block in blocks(page, "yaml"):
        shown = yaml.safe_load(block)
        if "kind" in shown:
            TypeAdapter(AdapterRecipe).validate_python(shown)
            continue
        if kinds := [kind for entry, kind in OTHERS.items() if entry in shown]:
            recipe = kinds[0].model_validate(shown)
            if isinstance(recipe, SweepRecipe):
                recipe.cells()
            continue
        Recipe.model_validate(shown if "base" in shown else BUNDLED | shown)  # or a part of one


def test_the_bundled_recipe_is_one_and_its_texts_are_there():
    recipe = Recipe.model_validate(BUNDLED)
    for text in (recipe.calibration, recipe.evaluation):
        assert (ROOT / "deploy/demo" / text.file).is_file()


def test_every_setting_is_documented_with_its_default():
    documented = {name: default for name, default, _ in rows("settings.md") if "GRAFTWORK_" in name}
    assert documented == {
        f"`GRAFTWORK_{name.upper()}`": shown(field.default)
        for name, field in Settings.model_fields.items()
    }


def shown(default: object) -> str:
    if default in (None, ""):
        return "none"
    return str(default).lower() if isinstance(default, bool) else str(default)


def test_every_field_of_a_recipe_and_every_method_is_documented():
    cells = rows("recipes.md")
    assert set(Recipe.model_fields) <= {row[0].strip("`") for row in cells}
    for entry in ENTRIES:
        (row,) = [row for row in cells if row[:2] == [entry.kind, f"`{entry.name}`"]]
        assert entry.paper.url in row[-1]
        described = row[2] + "".join(
            cell for page in re.findall(r"\]\((\w+\.md)\)", row[2]) for cell, *_ in rows(page)
        )
        for parameter in entry.params.model_fields:
            assert f"`{parameter}" in described


def test_every_field_of_a_recipe_about_adapters_is_documented():
    documented = {row[0].strip("`") for row in rows("adapters.md")}
    fields = {*MergeRecipe.model_fields, *CompressRecipe.model_fields} - {"kind"}
    assert fields <= documented


def test_every_field_of_a_sweep_and_of_a_choice_is_documented():
    cells = rows("sweeps.md")
    assert set(SweepRecipe.model_fields) <= {row[0].strip("`") for row in cells}
    assert set(Choice.model_fields) - {"name"} <= {row[1].strip("`") for row in cells}


def test_every_field_of_a_recipe_about_generators_is_documented():
    documented = {
        name.strip("` ") for row in rows("generation.md") if row for name in row[0].split(",")
    }
    for model in (TrainGeneratorRecipe, GenerateRecipe, Families, Network):
        assert set(model.model_fields) - {"kind"} <= documented


def test_every_field_of_a_recipe_that_trains_an_adapter_is_documented():
    documented = {
        name.strip("` ") for row in rows("training.md") if row for name in row[0].split(",")
    }
    for model in (TrainRecipe, Hyperparameters, Forgetting):
        assert set(model.model_fields) - {"kind"} <= documented


def test_the_api_page_lists_exactly_the_requests_that_the_gateway_answers(paths: dict[str, Any]):
    answered = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    listed = {cell.strip("`") for cell, *_ in rows("api.md") if cell.startswith("`")}
    assert listed == answered


@each_page
def test_requests_that_are_named_are_answered(page: Path, paths: dict[str, Any]):
    for method, path in re.findall(r"`(GET|POST|PATCH|DELETE) (/[^\s`?]*)", page.read_text()):
        assert method.lower() in paths[path]
