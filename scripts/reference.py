"""The generated part of the documentation: pages that mkdocs asks for, made from the code.

A hook of mkdocs (see mkdocs.yml).  Links that lead out of docs/ have no page to lead to there, so
they become plain text.
"""

import asyncio
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File
from typer.main import get_command

from pruning.methods import ENTRIES
from pruning.recipe import Recipe
from service.app import create_app
from service.cli import app
from service.settings import Settings

_OUTSIDE = re.compile(r"\[([^\]]+)\]\((\.\./[^)]+)\)")
_KINDS = {
    "criterion": "Criteria: which units matter",
    "allocator": "Allocators: how much leaves where",
    "schedule": "Schedules: in how many cuts",
    "recovery": "Recovery: what repairs",
    "merge": "Merging adapters",
    "compress": "Compressing adapters",
    "ranks": "Training adapters: how much rank goes where",
    "init": "Training adapters: how they begin",
    "form": "Training adapters: what form they have",
    "hook": "Training adapters: what happens at each step",
}


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    for name, content in pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links to files of the repository be their names."""
    return _OUTSIDE.sub(lambda link: link[1], markdown)


def pages() -> dict[str, str]:
    """The generated pages by name."""
    with tempfile.TemporaryDirectory() as home:
        gateway = create_app(Settings(home=Path(home)))
        state = gateway.state
        document = gateway.openapi()
        exposed = asyncio.run(state.metrics.exposition(state.engines, state.jobs)).decode()
        state.jobs.close()
        state.catalog.close()
    return {
        "commands": commands(),
        "recipe": recipe(),
        "methods": methods(),
        "requests": requests(document),
        "metrics": metrics(exposed),
    }


def commands() -> str:
    """Every command of the line, with its arguments and options."""
    lines = [
        "# Commands",
        "",
        "`graftwork --install-completion` lets your shell complete them.",
        "",
    ]
    for words, command in _leaves(get_command(app), "graftwork"):
        shown = [parameter for parameter in command.params if not parameter.hidden]
        lines += [f"## `{words}`", "", command.help or "", ""]
        rows = [(_called(p), _cell(p.help or "")) for p in shown if p.name != "help"]
        lines += _table(("argument", "meaning"), rows)
    return "\n".join(lines)


def _leaves(command: Any, words: str) -> Iterable[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield words, command
        return
    for name, inner in command.commands.items():
        yield from _leaves(inner, f"{words} {name}")


def _called(parameter: Any) -> str:
    options = [option for option in parameter.opts if option.startswith("-")]
    return f"`{', '.join(options) or str(parameter.name).upper()}`"


def recipe() -> str:
    """What a recipe may hold, entry by entry, with the schemas of what stands in it."""
    schema = Recipe.model_json_schema()
    lines = ["# Recipe", "", "[Recipes](../recipes.md) explains these.", ""]
    for title, part in {"Recipe": schema, **schema["$defs"]}.items():
        if "properties" in part:
            lines += [f"## {title}", "", _sentence(part.get("description", "")), ""]
            lines += _fields(part)
    return "\n".join(lines)


def methods() -> str:
    """Every method, with its paper and its parameters."""
    lines = [
        "# Methods",
        "",
        "[Criteria](../criteria.md) and [recovery](../recovery.md) compare them.",
        "",
    ]
    for kind, title in _KINDS.items():
        lines += [f"## {title}", ""]
        for entry in ENTRIES:
            if entry.kind == kind:
                paper = entry.paper
                lines += [f"### `{entry.name}`", "", f"{entry.summary}.", ""]
                lines += [f"{paper.authors}, [{paper.title}]({paper.url}), {paper.venue}.", ""]
                lines += _fields(entry.params.model_json_schema())
    return "\n".join(lines)


def requests(document: Mapping[str, Any]) -> str:
    """Every request that the gateway answers, and the schemas of what it takes and gives."""
    lines = ["# Requests", "", "From the gateway's own OpenAPI document, `/openapi.json`.", ""]
    for path, known in document["paths"].items():
        for method, request in known.items():
            lines += [f"## `{method.upper()} {path}`", "", _sentence(request["description"]), ""]
            rows = [
                (f"`{p['name']}`", p["in"], _type(p["schema"]), "yes" if p["required"] else "no")
                for p in request.get("parameters", ())
            ]
            lines += _table(("parameter", "in", "type", "required"), rows)
    lines += ["# Schemas", ""]
    for name, schema in sorted(document["components"]["schemas"].items()):
        if schema.get("properties"):
            lines += [f"## {name}", "", _sentence(schema.get("description", "")), ""]
            lines += _fields(schema)
    return "\n".join(lines)


def metrics(exposed: str) -> str:
    """The gateway's own metrics, as it exposes them."""
    kinds = dict(re.findall(r"^# TYPE (graftwork_\w+) (\w+)$", exposed, re.MULTILINE))
    helped = re.findall(r"^# HELP (graftwork_\w+) (.*)$", exposed, re.MULTILINE)
    lines = [
        "# Metrics",
        "",
        "Beside these, `/metrics` has those of every engine (`vllm:*`), with the",
    ]
    lines += ["label `engine`.", ""]
    rows = [(f"`{name}`", kinds[name], _cell(text)) for name, text in sorted(helped)]
    return "\n".join([*lines, *_table(("metric", "kind", "meaning"), rows)])


def _fields(schema: Mapping[str, Any]) -> list[str]:
    required = schema.get("required", ())
    rows = [
        (
            f"`{name}`",
            _type(field),
            "required" if name in required else f"`{field.get('default')}`",
            _cell(field.get("description", "")),
        )
        for name, field in schema.get("properties", {}).items()
    ]
    return _table(("field", "type", "default", "meaning"), rows)


def _type(schema: Mapping[str, Any]) -> str:
    """A type in a few words; limits stand behind it."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if found := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(_type(one) for one in found))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{one}`" for one in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    limits = [
        f"{sign} {schema[key]}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if key in schema
    ]
    return " ".join([schema.get("type", "any"), *limits])


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    if not (rows := list(rows)):
        return []
    lines = [titles, ("---",) * len(titles), *rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _sentence(text: str) -> str:
    return " ".join(text.split())
