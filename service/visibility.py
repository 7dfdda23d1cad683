"""Who sees a base, an adapter or a composition: its tenant alone, or all."""

from typing import Annotated, Literal

from fastapi import Depends
from pydantic import BaseModel, ConfigDict

from pruning.recipe import Name
from service.catalog import Catalog
from service.dependencies import CatalogDep, PrincipalDep
from service.errors import Forbidden
from service.records import Adapter, Base, NamedComposition

Visibility = Literal["private", "public"]


class VisibilityChange(BaseModel):
    model_config = ConfigDict(extra="forbid")

    visibility: Visibility

    @property
    def shared(self) -> bool:
        return self.visibility == "public"


def visibility_of(item: Base | Adapter | NamedComposition) -> Visibility:
    return "public" if item.shared else "private"


def _owner(
    change: VisibilityChange,
    catalog: CatalogDep,
    asks: PrincipalDep,
    tenant: Name | None = None,
) -> Catalog:
    """The catalog of whoever has the thing: of who asks, or of `tenant`, for the scope admin.

    To make a thing public takes the scope admin: it gets into the lists of everybody.
    """
    if not asks.may("admin") and (change.shared or tenant not in (None, asks.tenant)):
        raise Forbidden("to make a thing public, or change another's, takes the scope admin")
    return catalog if tenant is None else catalog.of(tenant)


OwnerDep = Annotated[Catalog, Depends(_owner)]
