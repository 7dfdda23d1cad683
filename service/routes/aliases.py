"""Aliases: names for bases that clients keep while what they name is promoted or rolled back."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from pruning.recipe import Name
from service.dependencies import CatalogDep, require
from service.records import Alias, base_name

router = APIRouter(prefix="/v1/aliases", tags=["aliases"])

_READ = require("infer", "adapters", "jobs")
_WRITE = require("adapters")


class Promotion(BaseModel):
    model_config = ConfigDict(extra="forbid")

    base: Name


class AliasObject(BaseModel):
    """`before` are the bases that it named before, oldest first: a rollback takes the last."""

    id: str
    object: Literal["alias"] = "alias"
    created: int
    base: str
    before: list[str]

    @classmethod
    def of(cls, alias: Alias) -> "AliasObject":
        before = [base_name(base) for base in alias.before]
        return cls(id=alias.name, created=alias.created, base=base_name(alias.base), before=before)


class AliasList(BaseModel):
    object: Literal["list"] = "list"
    data: list[AliasObject]


class Deleted(BaseModel):
    id: str
    object: Literal["alias"] = "alias"
    deleted: Literal[True] = True


@router.get("", dependencies=[_READ])
def list_aliases(catalog: CatalogDep) -> AliasList:
    """List the aliases."""
    return AliasList(data=[AliasObject.of(alias) for alias in catalog.aliases()])


@router.get("/{id}", dependencies=[_READ])
def get_alias(id: str, catalog: CatalogDep) -> AliasObject:
    """Look one alias up."""
    return AliasObject.of(catalog.alias(id))


@router.put("/{id}", dependencies=[_WRITE])
def promote(id: Name, promotion: Promotion, catalog: CatalogDep) -> AliasObject:
    """Let an alias name a base from now on; a new one is made."""
    return AliasObject.of(catalog.promote(id, promotion.base))


@router.post("/{id}/rollback", dependencies=[_WRITE])
def roll_back(id: str, catalog: CatalogDep) -> AliasObject:
    """Let an alias name what it named before."""
    return AliasObject.of(catalog.roll_back(id))


@router.delete("/{id}", dependencies=[_WRITE])
def delete_alias(id: str, catalog: CatalogDep) -> Deleted:
    """Forget an alias; its bases stay."""
    return Deleted(id=catalog.delete_alias(id).name)
