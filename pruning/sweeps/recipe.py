"""Sweeps: a recipe of which some fields take several values, and its cells (torch-free)."""

import math
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pruning.errors import InvalidInput
from pruning.recipe import Name, PruneSpec, Recipe, Size

MOST_CELLS = 256
SHARED = ("name", "base", "evaluation")  # what cells must have in common to be compared

Changes = dict[str, Any]  # what a cell has in the place of the fields that the grid names


class Decoding(BaseModel):
    """A decoding step whose time is measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch: int = Field(1, ge=1, le=4096, description="sequences of a step")
    context: int = Field(0, ge=0, description="tokens that each has behind it")

    @property
    def size(self) -> Size:
        """The same, as what measures it reads it."""
        return Size(latency_ms=1, batch=self.batch, context=self.context)


class SweepRecipe(BaseModel):
    """A recipe with a grid: each field that the grid names takes every one of its values.

    All other fields are those of a `Recipe`, and shared by all cells.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    name: Name = Field(description="of the sweep; cell 3 makes NAME-3")
    base: Name = Field(description="a registered base")
    grid: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(
        min_length=1,
        description="fields of a recipe, or of entries in it such as size.bytes, each with the "
        f"values to try; at most {MOST_CELLS} cells in all",
    )
    context: int = Field(
        0, ge=0, description="tokens in the KV cache that count in the bytes of a cell"
    )
    latency: Decoding | None = Field(None, description="measure a decoding step of each cell")
    seed: int = Field(0, ge=0)

    def changes(self) -> tuple[Changes, ...]:
        """What each cell has of the grid; of the fields in alphabetical order the last is fastest.

        Raises InvalidInput for a grid that is too large, or that no comparison can be made over.
        """
        count = math.prod(map(len, self.grid.values()))
        if count > MOST_CELLS:
            raise InvalidInput(
                "grid", f"it has {count} cells; at most {MOST_CELLS} are run at once"
            )
        for name, values in self.grid.items():
            if name in SHARED:
                raise InvalidInput(f"grid.{name}", "all cells share it; give it beside the grid")
            if any(value in values[:i] for i, value in enumerate(values)):
                raise InvalidInput(f"grid.{name}", "names a value twice; leave one out")
        names = sorted(self.grid)
        combined = product(*(self.grid[name] for name in names))
        return tuple(dict(zip(names, values, strict=True)) for values in combined)

    def cells(self) -> tuple[Recipe, ...]:
        """The recipe of every cell; InvalidInput names what is wrong in the grid or beside it."""
        return tuple(self.cell(number) for number in range(len(self.changes())))

    def cell(self, number: int) -> Recipe:
        """The recipe of one cell; InvalidInput as for all."""
        document: dict[str, Any] = {**(self.model_extra or {}), "base": self.base}
        document |= {"seed": self.seed, "name": f"{self.name}-{number}"}
        for path, value in self.changes()[number].items():
            document = _with(document, path, path, value)
        try:
            return Recipe.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "grid"
            raise self.blamed(InvalidInput(field, first["msg"]), number) from None

    def blamed(self, error: InvalidInput, number: int) -> InvalidInput:
        """An error about the recipe of a cell, as one about this recipe."""
        changes, field = self.changes()[number], error.field
        for name, value in changes.items():
            if f"{field}.".startswith(f"{name}."):
                place = self.grid[name].index(value)
                field = f"grid.{name}.{place}{field.removeprefix(name)}"
        message = f"{error.message} (cell {number}: {label(changes)})"
        return InvalidInput(field, message, code=error.code, status=error.status)


class SweepSpec(BaseModel):
    """A sweep with every name resolved to a path: the input of the durable workflow."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: SweepRecipe
    cells: tuple[PruneSpec, ...] = Field(min_length=1)
    tenant: str = "local"

    @property
    def base(self) -> Path:
        """The base of all cells."""
        return self.cells[0].base


def label(changes: Changes) -> str:
    """A cell in a few words: what it has of each field."""
    return ", ".join(f"{name} {brief(value)}" for name, value in changes.items())


def brief(value: Any) -> str:
    """A value of a grid in a word or two."""
    if isinstance(value, dict):
        own = {name: entry for name, entry in value.items() if name not in ("name", "params")}
        own |= value.get("params") or {}
        inner = ", ".join(f"{name}={brief(entry)}" for name, entry in own.items())
        return " ".join(filter(None, [value.get("name"), inner and f"({inner})"])) or "{}"
    if isinstance(value, list | tuple):
        return " + ".join(map(brief, value)) or "none"
    return "none" if value is None else str(value)


def _with(document: dict[str, Any], path: str, whole: str, value: Any) -> dict[str, Any]:
    """The document with another value at a dotted path; `whole` is that in the grid."""
    first, _, rest = path.partition(".")
    if not rest:
        return {**document, first: value}
    inner = document.get(first, {})
    if not isinstance(inner, dict):
        raise InvalidInput(f"grid.{whole}", f"{first} has no entries beside the grid to change")
    return {**document, first: _with(inner, rest, whole, value)}
