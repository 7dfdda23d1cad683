"""Model ids of the OpenAI API: BASE, BASE+ADAPTER, or BASE+ADAPTER@DIGEST for one exact content."""

import difflib
import re
from dataclasses import dataclass

from pruning.errors import InvalidInput
from service.catalog import Adapter, Base, Catalog
from service.errors import ModelNotFound, NotFound

_ID = re.compile(r"(?P<base>[^+@]+)(\+(?P<adapter>[^+@]+)(@(?P<digest>[0-9a-f]{12}))?)?")


@dataclass(frozen=True)
class Model:
    """What a model id stands for; without an adapter it is the bare base."""

    base: Base
    adapter: Adapter | None = None

    @property
    def id(self) -> str:
        return self.adapter.model if self.adapter else self.base.name

    @property
    def engine_name(self) -> str:
        """What the engine calls it."""
        return self.adapter.engine_name if self.adapter else self.base.name


def served(catalog: Catalog) -> tuple[Model, ...]:
    """Every model that requests can name, each base before its adapters."""
    adapters = catalog.adapters()
    return tuple(
        model
        for base in catalog.bases(serve=True)
        for model in (Model(base), *(Model(base, a) for a in adapters if a.base == base.name))
    )


def resolve(catalog: Catalog, id: str) -> Model:
    """The served model of this id; ModelNotFound, listing near names, when there is none."""
    try:
        return _lookup(catalog, id)
    except NotFound:
        names = [model.id for model in served(catalog)]
        near = difflib.get_close_matches(id, names, n=5, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "GET /v1/models lists what is served"
        raise ModelNotFound(f"the model {id!r} does not exist; {hint}", param="model") from None


def requested(body: object) -> str:
    """The model id in a request's body; InvalidInput when there is none."""
    if not isinstance(body, dict):
        raise InvalidInput("body", "must be a JSON object")
    if "model" not in body:
        raise InvalidInput("model", "is missing; GET /v1/models lists what is served")
    if not isinstance(id := body["model"], str):
        raise InvalidInput("model", f"must be a string, not {type(id).__name__}")
    return id


def split(id: str) -> tuple[str, str]:
    """Base and name of an adapter's id, BASE+ADAPTER; NotFound when it is no such id."""
    base, _, name = id.partition("+")
    if not name:
        raise NotFound(f"adapter {id!r} does not exist; ids have the form BASE+ADAPTER")
    return base, name


def _lookup(catalog: Catalog, id: str) -> Model:
    if (match := _ID.fullmatch(id)) is None:
        raise NotFound
    base = catalog.base(match["base"])
    if not base.serve:
        raise NotFound
    if match["adapter"] is None:
        return Model(base)
    adapter = catalog.adapter(base.name, match["adapter"])
    if match["digest"] not in (None, adapter.digest[:12]):
        raise NotFound
    return Model(base, adapter)
