"""Generators of adapters: list, look up, forget.  Jobs make them and ask them."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from service.dependencies import CatalogDep, require
from service.models import split
from service.records import Generator

router = APIRouter(
    prefix="/v1/generators", tags=["generators"], dependencies=[require("adapters", "jobs")]
)


class GeneratorObject(BaseModel):
    """`digest` is that of its artifact."""

    id: str
    object: Literal["generator"] = "generator"
    created: int
    name: str
    base: str
    digest: str

    @classmethod
    def of(cls, generator: Generator) -> "GeneratorObject":
        return cls(
            id=generator.id,
            created=generator.created,
            name=generator.name,
            base=generator.base_name,
            digest=generator.digest,
        )


class GeneratorList(BaseModel):
    object: Literal["list"] = "list"
    data: list[GeneratorObject]


class Deleted(BaseModel):
    id: str
    object: Literal["generator"] = "generator"
    deleted: Literal[True] = True


@router.get("")
def list_generators(catalog: CatalogDep, base: str | None = None) -> GeneratorList:
    """List the generators, of one base or of all."""
    return GeneratorList(data=[GeneratorObject.of(one) for one in catalog.generators(base)])


@router.get("/{id}")
def get_generator(id: str, catalog: CatalogDep) -> GeneratorObject:
    """Look one generator up by its id, BASE+NAME."""
    return GeneratorObject.of(catalog.generator(*split(id)))


@router.delete("/{id}")
def delete_generator(id: str, catalog: CatalogDep) -> Deleted:
    """Forget a generator; the adapters that it made stay."""
    return Deleted(id=catalog.delete_generator(*split(id)).id)
