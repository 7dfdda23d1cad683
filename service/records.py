"""What the catalog knows, as frozen data."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pruning.geometry import Geometry
from service.composition import Composition
from service.tenants import LOCAL, mark

_OWN = "~"  # no name contains it


def base_id(name: str, tenant: str, shared: bool) -> str:
    """What is unique on the whole server, for engines and for references; it never changes.

    Those that are shared from the beginning, and those of a server without tenants, have their
    name; a tenant's own tells nobody whose it is.
    """
    return name if shared or tenant == LOCAL else f"{name}{_OWN}{mark(tenant, name)[:16]}"


def base_name(id: str) -> str:
    """The name that is in the id of a base."""
    return id.partition(_OWN)[0]


@dataclass(frozen=True)
class Base:
    """A servable directory under a name; `parent` and `artifact` tell a slim base's origin.

    `id` is what engines know it by, and `parent` the id of another.
    """

    id: str
    name: str
    path: Path
    digest: str
    config: Mapping[str, Any]
    parent: str | None
    artifact: str | None
    serve: bool
    created: int
    tenant: str = LOCAL
    shared: bool = True
    bytes: int = 0  # that Graftwork stores of it

    @cached_property
    def geometry(self) -> Geometry:
        return Geometry.from_config(self.config)


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter of the base with the id `base`; no content changes under its digest."""

    base: str
    name: str
    digest: str
    path: Path
    rank: int
    created: int
    tenant: str = LOCAL
    shared: bool = False
    bytes: int = 0

    @property
    def base_name(self) -> str:
        return base_name(self.base)

    @property
    def model(self) -> str:
        """What requests put in their `model` field."""
        return f"{self.base_name}+{self.name}"

    @property
    def engine_name(self) -> str:
        """The name inside the engine: a new one for each content and each tenant."""
        own = "" if self.tenant == LOCAL else f".{mark(self.tenant, self.digest)}"
        return f"{self.model}@{self.digest[:12]}{own}"

    @property
    def content(self) -> str:
        """What compositions know it by: its digest, apart for each tenant."""
        return self.digest if self.tenant == LOCAL else mark(self.tenant, self.digest)


@dataclass(frozen=True)
class Profile:
    """How what an adapter adds to a base varies along a text, by the digests of their contents."""

    adapter: str
    base: str
    path: Path
    summary: Mapping[str, Any]
    created: int


@dataclass(frozen=True)
class Generator:
    """What makes adapters of the base with the id `base`; an artifact, by its digest and path."""

    base: str
    name: str
    digest: str
    path: Path
    created: int
    tenant: str = LOCAL
    bytes: int = 0

    @property
    def base_name(self) -> str:
        return base_name(self.base)

    @property
    def id(self) -> str:
        return f"{self.base_name}+{self.name}"


@dataclass(frozen=True)
class NamedComposition:
    """A composition under a name of its own, on the base with the id `base`.

    `pinned` ones stay loaded; the adapters of a shared one are as its tenant sees them.
    """

    base: str
    name: str
    composition: Composition
    pinned: bool
    created: int
    tenant: str = LOCAL
    shared: bool = False

    @property
    def model(self) -> str:
        """What requests put in their `model` field."""
        return f"{self.composition.base}+{self.name}"


@dataclass(frozen=True)
class Alias:
    """A name for a base that may move; `before` are the bases that it named, oldest first.

    Both are ids.
    """

    name: str
    base: str
    before: tuple[str, ...]
    created: int


@dataclass(frozen=True)
class File:
    """An uploaded text."""

    id: str
    digest: str
    path: Path
    filename: str
    purpose: str
    bytes: int
    created: int
    tenant: str = LOCAL
