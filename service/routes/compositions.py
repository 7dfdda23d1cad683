"""Named compositions: weighted sums of adapters that requests ask for by one name."""

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from pruning.recipe import Method, Name
from service.composition import EXACT, MOST_PARTS, MOST_WEIGHT, Composition, Part
from service.dependencies import CatalogDep, require
from service.models import split
from service.records import NamedComposition
from service.visibility import OwnerDep, Visibility, VisibilityChange, visibility_of

router = APIRouter(
    prefix="/v1/compositions", tags=["compositions"], dependencies=[require("adapters")]
)

Weight = Annotated[float, Field(ge=-MOST_WEIGHT, le=MOST_WEIGHT)]


class NewComposition(BaseModel):
    """What to name; `adapters` are names, or ids BASE+NAME, with weights."""

    model_config = ConfigDict(extra="forbid")

    name: Name = Field(description="requests ask for BASE+NAME")
    base: Name
    adapters: dict[str, Weight] = Field(min_length=1, max_length=MOST_PARTS)
    strategy: Method = Field(EXACT, description="a merge method; cat is the exact sum")
    pinned: bool = Field(False, description="keep it loaded, whatever else is asked for")


class CompositionObject(BaseModel):
    """`id` is what requests put in their `model` field; `spelled` asks for the same."""

    id: str
    object: Literal["composition"] = "composition"
    created: int
    name: str
    base: str
    adapters: dict[str, float]
    strategy: Method
    pinned: bool
    visibility: Visibility
    spelled: str

    @classmethod
    def of(cls, named: NamedComposition) -> "CompositionObject":
        composition = named.composition
        return cls(
            id=named.model,
            created=named.created,
            name=named.name,
            base=composition.base,
            adapters={part.adapter: part.weight for part in composition.parts},
            strategy=composition.strategy,
            pinned=named.pinned,
            visibility=visibility_of(named),
            spelled=composition.id,
        )


class CompositionList(BaseModel):
    object: Literal["list"] = "list"
    data: list[CompositionObject]


class Deleted(BaseModel):
    id: str
    object: Literal["composition"] = "composition"
    deleted: Literal[True] = True


@router.post("", status_code=201)
def name_composition(new: NewComposition, catalog: CatalogDep) -> CompositionObject:
    """Give a weighted sum of adapters a name."""
    parts = [Part(id.removeprefix(f"{new.base}+"), w) for id, w in new.adapters.items()]
    composition = Composition.of(new.base, parts, new.strategy, "adapters")
    return CompositionObject.of(catalog.add_composition(new.name, composition, pinned=new.pinned))


@router.get("")
def list_compositions(catalog: CatalogDep, base: str | None = None) -> CompositionList:
    """List the named compositions, of one base or of all."""
    return CompositionList(data=[CompositionObject.of(c) for c in catalog.compositions(base)])


@router.get("/{id}")
def get_composition(id: str, catalog: CatalogDep) -> CompositionObject:
    """Look one composition up by its id, BASE+NAME."""
    return CompositionObject.of(catalog.composition(*split(id)))


@router.put("/{id}/visibility")
def change_visibility(id: str, change: VisibilityChange, owner: OwnerDep) -> CompositionObject:
    """Share a composition with all tenants (scope admin), or with none."""
    return CompositionObject.of(owner.share_composition(*split(id), change.shared))


@router.delete("/{id}")
def delete_composition(id: str, catalog: CatalogDep) -> Deleted:
    """Forget the name; who spells the composition out still gets it."""
    return Deleted(id=catalog.delete_composition(*split(id)).model)
