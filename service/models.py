"""Model ids of the OpenAI API: BASE, BASE+NAME, BASE+ADAPTER@DIGEST, or a composition spelled out.

BASE is a base or an alias of one.
NAME is that of an adapter or of a named composition; @DIGEST asks for one exact content.
"""

import difflib
import re
from dataclasses import dataclass, replace
from functools import cached_property

from pruning.errors import InvalidInput
from service.catalog import Catalog
from service.composition import Composition, spelled
from service.composition import requested as beside
from service.errors import ModelNotFound, NotFound
from service.records import Adapter, Base, NamedComposition

_ID = re.compile(r"(?P<base>[^+@:]+)(\+(?P<name>[^+@:]+)(@(?P<digest>[0-9a-f]{12}))?)?")


@dataclass(frozen=True)
class Composed:
    """A composition with the adapters that its parts name now; `named` when the catalog has it."""

    composition: Composition
    adapters: tuple[Adapter, ...]  # in the order of the parts
    named: NamedComposition | None = None
    merged: bool = False  # an exact sum that is built into a plain adapter all the same

    @property
    def built(self) -> bool:
        """Whether an engine needs it as one plain adapter."""
        return self.merged or not (self.composition.exact or self.composition.period)

    @cached_property  # a request asks for it about ten times
    def digest(self) -> str:
        """Changes with the content of any adapter."""
        return self.composition.digest({a.name: a.content for a in self.adapters})

    @property
    def pinned(self) -> bool:
        """Whether it stays loaded."""
        return self.named is not None and self.named.pinned

    @property
    def rank(self) -> int:
        """Of the exact sum, at most."""
        return sum(adapter.rank for adapter in self.adapters)


@dataclass(frozen=True)
class Model:
    """What a model id stands for; without an adapter or a composition it is the bare base."""

    base: Base
    adapter: Adapter | None = None
    composed: Composed | None = None

    @property
    def id(self) -> str:
        """What metrics and lists call it; all compositions without a name share one."""
        if self.composed:
            named = self.composed.named
            return named.model if named else f"{self.base.name}+*"
        return self.adapter.model if self.adapter else self.base.name

    @property
    def tenant(self) -> str:
        """Whose it is."""
        named = self.composed.named if self.composed else None
        return (named or self.adapter or self.base).tenant

    @property
    def public_id(self) -> str:
        """The same without any name that is not shared: what metrics call it among tenants."""
        if not self.base.shared:
            return "*"
        named = self.composed.named if self.composed else None
        shared = [content.shared for content in (named, self.adapter) if content]
        private = not all(shared) or (self.composed and not named)
        return f"{self.base.name}+*" if private else self.id

    @property
    def engine_name(self) -> str:
        """What the engine calls it: a new name for each content."""
        if self.composed:
            form = ".merged" if self.composed.merged else ""
            return f"{self.base.id}+*@{self.composed.digest}{form}"
        return self.adapter.engine_name if self.adapter else self.base.id

    @property
    def merged(self) -> "Model":
        """The same composition as one plain adapter."""
        assert self.composed is not None
        return replace(self, composed=replace(self.composed, merged=True))


def served(catalog: Catalog) -> tuple[Model, ...]:
    """Every model that requests can name, each base before its adapters and compositions."""
    adapters, named = catalog.adapters(), catalog.compositions()
    found: list[Model] = []
    for base in catalog.bases(serve=True):
        here = [Model(base, adapter) for adapter in adapters if adapter.base == base.id]
        here += [_named(catalog, base, c) for c in named if c.base == base.id]
        own = {model.id for model in here if model.tenant == catalog.tenant}
        found += [Model(base)]
        found += [m for m in here if m.tenant == catalog.tenant or m.id not in own]
    return tuple(found)


def resolve(catalog: Catalog, body: object) -> Model:
    """The served model that a request's body asks for.

    Raises InvalidInput for a body without one, ModelNotFound, listing near names, when there is
    none of that name.
    """
    id = requested(body)
    assert isinstance(body, dict)
    if (composition := beside(id, body)) is not None:
        return _compose(catalog, composition)
    return lookup(catalog, id)


def lookup(catalog: Catalog, id: str) -> Model:
    """The served model of this id; ModelNotFound, listing near names, when there is none."""
    try:
        if match := _ID.fullmatch(id):
            return _plain(catalog, match)
        if composition := spelled(id):
            return _compose(catalog, composition)
        raise NotFound
    except ModelNotFound:
        raise
    except NotFound:
        raise _unknown(catalog, id) from None


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
    """Base and name of an adapter's id, BASE+NAME; NotFound when it is no such id."""
    base, _, name = id.partition("+")
    if not name:
        raise NotFound(f"{id!r} does not exist; ids have the form BASE+NAME")
    return base, name


def _unknown(catalog: Catalog, id: str) -> ModelNotFound:
    names = [model.id for model in served(catalog)]
    near = difflib.get_close_matches(id, names, n=5, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "GET /v1/models lists what is served"
    return ModelNotFound(f"the model {id!r} does not exist; {hint}", param="model")


def _plain(catalog: Catalog, match: re.Match[str]) -> Model:
    base = _served_base(catalog, match["base"])
    if match["name"] is None:
        return Model(base)
    if match["digest"] is None and (named := catalog.find_composition(base.name, match["name"])):
        return _named(catalog, base, named)
    adapter = catalog.adapter(base.name, match["name"])
    if match["digest"] not in (None, adapter.digest[:12]):
        raise NotFound
    return Model(base, adapter)


def _compose(catalog: Catalog, composition: Composition) -> Model:
    try:
        base = _served_base(catalog, composition.base)
    except NotFound:
        raise _unknown(catalog, composition.base) from None
    own = {adapter.name: adapter for adapter in catalog.adapters(base.name)}
    for part in composition.parts:
        if part.adapter not in own:
            raise _unknown(catalog, f"{base.name}+{part.adapter}")
    composition = replace(composition, base=base.name)  # it may have been spelled with an alias
    return Model(base, composed=_composed(composition, own, None))


def _named(catalog: Catalog, base: Base, named: NamedComposition) -> Model:
    """A named composition of what its tenant sees, whoever asks for it."""
    theirs = catalog.of(named.tenant).adapters()
    own = {adapter.name: adapter for adapter in theirs if adapter.base == base.id}
    return Model(base, composed=_composed(named.composition, own, named))


def _composed(
    composition: Composition, own: dict[str, Adapter], named: NamedComposition | None
) -> Composed:
    adapters = tuple(own[part.adapter] for part in composition.parts)
    return Composed(composition, adapters, named)


def _served_base(catalog: Catalog, name: str) -> Base:
    try:
        base = catalog.base(name)
    except NotFound:
        base = catalog.base_by_id(catalog.alias(name).base)
    if not base.serve:
        raise NotFound
    return base
