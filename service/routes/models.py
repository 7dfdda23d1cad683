"""Models, as OpenAI's clients list them: every served base, and its adapters below it."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from service.dependencies import CatalogDep, EnginesDep, require
from service.engines import Engines
from service.models import Model, lookup, served
from service.readiness import is_ready

router = APIRouter(
    prefix="/v1/models", tags=["models"], dependencies=[require("infer", "adapters", "jobs")]
)


class ModelObject(BaseModel):
    """`root` is the digest of the content.

    `parent` is the base of an adapter or a composition, and what an alias names.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "graftwork"
    root: str
    parent: str | None
    ready: bool

    @classmethod
    def of(cls, model: Model, engines: Engines) -> "ModelObject":
        content, composed = model.adapter or model.base, model.composed
        named = composed.named if composed else None
        return cls(
            id=model.id,
            created=named.created if named else content.created,
            root=composed.digest if composed else content.digest,
            parent=None if content is model.base and composed is None else model.base.name,
            ready=is_ready(engines, model.base.id),
        )


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelObject]


@router.get("")
def list_models(catalog: CatalogDep, engines: EnginesDep) -> ModelList:
    """List what the `model` field of a request can name."""
    models = served(catalog)
    bases = {model.base.id: model for model in models if model.id == model.base.name}
    moving = [
        ModelObject.of(bases[alias.base], engines).model_copy(
            update={"id": alias.name, "parent": bases[alias.base].id}
        )
        for alias in catalog.aliases()
        if alias.base in bases
    ]
    return ModelList(data=[*(ModelObject.of(model, engines) for model in models), *moving])


@router.get("/{id}")
def get_model(id: str, catalog: CatalogDep, engines: EnginesDep) -> ModelObject:
    """Look one model up."""
    return ModelObject.of(lookup(catalog, id), engines)
