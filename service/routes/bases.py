"""Bases: checkpoints on the server's disk, and the slim ones that pruning jobs published."""

from pathlib import Path
from typing import Literal

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from pruning.recipe import Name
from pruning.reports.front import Point, points
from pruning.reports.report import Report
from service import bases
from service.dependencies import CatalogDep, EnginesDep, PrincipalDep, require
from service.engines import Engines
from service.readiness import is_ready
from service.records import Base, base_name
from service.tenants import Principal
from service.visibility import OwnerDep, Visibility, VisibilityChange, visibility_of

router = APIRouter(prefix="/v1/bases", tags=["bases"])

_READ = require("infer", "adapters", "jobs")


class NewBase(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Name
    path: Path = Field(description="absolute directory on the server's disk; it is not copied")
    serve: bool = Field(True, description="start an engine for it")


class BaseChange(BaseModel):
    model_config = ConfigDict(extra="forbid")

    serve: bool


class BaseObject(BaseModel):
    """`parent` and `artifact` are those of a slim base; `path` is told to the scope admin."""

    id: str
    object: Literal["base"] = "base"
    created: int
    path: str | None
    digest: str
    family: str
    parameters: int
    layers: int
    parent: str | None
    artifact: str | None
    serve: bool
    ready: bool
    visibility: Visibility

    @classmethod
    def of(cls, base: Base, engines: Engines, asks: Principal) -> "BaseObject":
        return cls(
            id=base.name,
            created=base.created,
            path=str(base.path) if asks.may("admin") else None,
            digest=base.digest,
            family=base.geometry.family,
            parameters=base.geometry.parameters,
            layers=len(base.geometry.layers),
            parent=base_name(base.parent) if base.parent else None,
            artifact=base.artifact,
            serve=base.serve,
            ready=is_ready(engines, base.id),
            visibility=visibility_of(base),
        )


class FrontObject(BaseModel):
    """`on_front` are the points than which none is both smaller and better."""

    object: Literal["front"] = "front"
    base: str
    parameters: int
    weight_bytes: int
    data: list[Point]

    @classmethod
    def of(cls, base: Base, reports: list[Report]) -> "FrontObject":
        return cls(
            base=base.name,
            parameters=base.geometry.parameters,
            weight_bytes=bases.weight_bytes(base),
            data=list(points(reports)),
        )


class BaseList(BaseModel):
    object: Literal["list"] = "list"
    data: list[BaseObject]


class Deleted(BaseModel):
    id: str
    object: Literal["base"] = "base"
    deleted: Literal[True] = True


@router.post("", status_code=201, dependencies=[require("admin")])
def register_base(
    new: NewBase, catalog: CatalogDep, engines: EnginesDep, asks: PrincipalDep
) -> BaseObject:
    """Register a checkpoint: config.json, safetensors weights and a tokenizer in one directory."""
    return BaseObject.of(bases.register(catalog, new.name, new.path, new.serve), engines, asks)


@router.get("", dependencies=[_READ])
def list_bases(catalog: CatalogDep, engines: EnginesDep, asks: PrincipalDep) -> BaseList:
    """List all bases, served or not."""
    return BaseList(data=[BaseObject.of(base, engines, asks) for base in catalog.bases()])


@router.get("/{id}", dependencies=[_READ])
def get_base(id: str, catalog: CatalogDep, engines: EnginesDep, asks: PrincipalDep) -> BaseObject:
    """Look one base up."""
    return BaseObject.of(catalog.base(id), engines, asks)


@router.get("/{id}/report", response_class=Response, dependencies=[_READ])
def get_report(
    id: str, catalog: CatalogDep, format: Literal["json", "html"] = "json"
) -> FileResponse:
    """What the job that made a slim base measured before and after."""
    media_type = {"json": "application/json", "html": "text/html"}[format]
    return FileResponse(bases.report_file(catalog.base(id), format), media_type=media_type)


@router.get("/{id}/front", dependencies=[_READ])
def get_front(id: str, catalog: CatalogDep) -> FrontObject:
    """Size and quality of every slim base of a dense one, and which of them are worth having."""
    base = catalog.base(id)
    slim = [one for one in catalog.bases() if one.parent == base.id and one.artifact]
    return FrontObject.of(base, [bases.report_of(one) for one in slim])


@router.patch("/{id}", dependencies=[require("admin")])
def change_base(
    id: str, change: BaseChange, catalog: CatalogDep, engines: EnginesDep, asks: PrincipalDep
) -> BaseObject:
    """Start or stop serving a base."""
    return BaseObject.of(catalog.set_serve(id, change.serve), engines, asks)


@router.put("/{id}/visibility", dependencies=[require("jobs")])
def change_visibility(
    id: str, change: VisibilityChange, owner: OwnerDep, engines: EnginesDep, asks: PrincipalDep
) -> BaseObject:
    """Share a base with all tenants (scope admin), or with none."""
    return BaseObject.of(owner.share_base(id, change.shared), engines, asks)


@router.delete("/{id}", dependencies=[require("admin")])
def delete_base(id: str, catalog: CatalogDep) -> Deleted:
    """Forget a base that nothing depends on; its directory stays on disk."""
    return Deleted(id=catalog.delete_base(id).name)
