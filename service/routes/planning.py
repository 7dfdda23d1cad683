"""Before a job: what its recipe would leave of the base, and which methods there are."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, BeforeValidator, WithJsonSchema

from pruning.allocation.preview import Preview, preview
from pruning.methods import ENTRIES
from pruning.methods.entry import Kind, MethodEntry, Paper
from pruning.recipe import Recipe
from service.bases import weight_bytes
from service.dependencies import CatalogDep, require
from service.texts import lookup

router = APIRouter(prefix="/v1/pruning", tags=["jobs"], dependencies=[require("jobs")])

_UNSAID = {"name": "preview", "calibration": {"file": "none"}, "evaluation": {"file": "none"}}


def _completed(recipe: Any) -> Any:
    return _UNSAID | recipe if isinstance(recipe, dict) else recipe


Draft = Annotated[
    Recipe,
    BeforeValidator(_completed),
    WithJsonSchema({"type": "object", "description": "a recipe; name and texts may be missing"}),
]


class MethodObject(BaseModel):
    """A method that recipes name; `parameters` is the JSON schema of what it takes."""

    kind: Kind
    name: str
    summary: str
    paper: Paper
    parameters: dict[str, Any]

    @classmethod
    def of(cls, entry: MethodEntry) -> "MethodObject":
        return cls(
            kind=entry.kind,
            name=entry.name,
            summary=entry.summary,
            paper=entry.paper,
            parameters=entry.params.model_json_schema().get("properties", {}),
        )


class MethodList(BaseModel):
    object: Literal["list"] = "list"
    data: list[MethodObject]


@router.post("/preview")
def preview_recipe(recipe: Draft, catalog: CatalogDep) -> Preview:
    """What a recipe would leave; nothing runs, and texts are not looked up."""
    base = lookup("base", lambda: catalog.base(recipe.base))
    return preview(base.geometry, recipe, weight_bytes(base))


@router.get("/methods")
def list_methods(kind: Kind | None = None) -> MethodList:
    """Every method that recipes can name, or those of one kind, each with its paper."""
    found = [entry for entry in ENTRIES if kind in (None, entry.kind)]
    return MethodList(data=[MethodObject.of(entry) for entry in found])
