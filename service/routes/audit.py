"""The audit log: every change of what tenants have and may, for admins."""

from dataclasses import asdict
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel

from service.catalog.audit import Change
from service.dependencies import CatalogDep, require

router = APIRouter(prefix="/v1/audit", tags=["audit"], dependencies=[require("admin")])

Limit = Annotated[int, Query(ge=1, le=1000)]


class ChangeObject(BaseModel):
    """`tenant` is whose thing changed, `by` and `key` are who asked; times are Unix seconds."""

    number: int
    object: str
    created: int
    tenant: str
    action: str
    by: str
    key: str | None
    request_id: str | None

    @classmethod
    def of(cls, change: Change) -> "ChangeObject":
        return cls(**asdict(change))


class ChangeList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ChangeObject]


@router.get("")
def list_changes(
    catalog: CatalogDep,
    tenant: str | None = None,
    before: Annotated[int | None, Query(ge=1, lt=1 << 63)] = None,
    limit: Limit = 100,
) -> ChangeList:
    """The newest changes first; ask for older ones with `before`, the last number that came."""
    found = catalog.changes(tenant, before, limit)
    return ChangeList(data=[ChangeObject.of(change) for change in found])
