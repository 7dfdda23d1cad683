"""Adapters: register, look up, delete.  Engines load them on first use."""

from typing import Literal

from fastapi import APIRouter
from fastapi.responses import FileResponse
from pydantic import BaseModel

from service.dependencies import AdaptersDep, CatalogDep, require
from service.errors import NotFound
from service.models import split
from service.records import Adapter, Profile
from service.submissions import SubmissionDep, openapi_body
from service.visibility import OwnerDep, Visibility, VisibilityChange, visibility_of

router = APIRouter(prefix="/v1/adapters", tags=["adapters"], dependencies=[require("adapters")])


class ProfileObject(BaseModel):
    """How what the adapter adds varies along a text: energies per token and over all linears.

    `correlation` is that of what varies, by distance in tokens; `high` the share of all power in
    the upper 80 % of frequencies.
    """

    constant: float
    varying: float
    high: float
    correlation: list[float]


class AdapterObject(BaseModel):
    """`id` is what requests put in their `model` field."""

    id: str
    object: Literal["adapter"] = "adapter"
    created: int
    name: str
    base: str
    rank: int
    digest: str
    visibility: Visibility
    profile: ProfileObject | None = None

    @classmethod
    def of(cls, adapter: Adapter, profile: Profile | None = None) -> "AdapterObject":
        return cls(
            id=adapter.model,
            created=adapter.created,
            name=adapter.name,
            base=adapter.base_name,
            rank=adapter.rank,
            digest=adapter.digest,
            profile=ProfileObject.model_validate(profile.summary) if profile else None,
            visibility=visibility_of(adapter),
        )


class AdapterList(BaseModel):
    object: Literal["list"] = "list"
    data: list[AdapterObject]


class Deleted(BaseModel):
    id: str
    object: Literal["adapter"] = "adapter"
    deleted: Literal[True] = True


@router.post("", status_code=201, openapi_extra=openapi_body())
def register_adapter(submission: SubmissionDep, adapters: AdaptersDep) -> AdapterObject:
    """Register a PEFT directory on the server's disk, or upload the files of one."""
    return AdapterObject.of(adapters.register(submission))


@router.get("")
def list_adapters(catalog: CatalogDep, base: str | None = None) -> AdapterList:
    """List the adapters, of one base or of all."""
    return AdapterList(data=[AdapterObject.of(adapter) for adapter in catalog.adapters(base)])


@router.get("/{id}")
def get_adapter(id: str, catalog: CatalogDep) -> AdapterObject:
    """Look one adapter up by its id, BASE+ADAPTER; its profile is there once a job made one."""
    adapter = catalog.adapter(*split(id))
    return AdapterObject.of(adapter, catalog.profile(adapter))


@router.get("/{id}/profile")
def get_profile(id: str, catalog: CatalogDep) -> FileResponse:
    """The profile of an adapter, linear by linear, as JSON."""
    if (profile := catalog.profile(catalog.adapter(*split(id)))) is None:
        raise NotFound(f"{id} has no profile; POST /v1/adapters/jobs makes one")
    return FileResponse(profile.path, media_type="application/json")


@router.put("/{id}", openapi_extra=openapi_body())
async def replace_adapter(
    id: str, submission: SubmissionDep, adapters: AdaptersDep
) -> AdapterObject:
    """Give an adapter other content: what is asked from now on is answered by it."""
    return AdapterObject.of(await adapters.replace(*split(id), submission))


@router.put("/{id}/visibility")
def change_visibility(id: str, change: VisibilityChange, owner: OwnerDep) -> AdapterObject:
    """Share an adapter with all tenants (scope admin), or with none."""
    return AdapterObject.of(owner.share_adapter(*split(id), change.shared))


@router.delete("/{id}")
async def delete_adapter(id: str, adapters: AdaptersDep) -> Deleted:
    """Unload an adapter and forget it."""
    return Deleted(id=(await adapters.delete(*split(id))).model)
