"""Tenants: who asks, what they may do, and what marks their content apart inside an engine."""

import hashlib
from dataclasses import dataclass
from typing import Literal, get_args

Scope = Literal["infer", "adapters", "jobs", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
LOCAL = "local"  # whoever asks a gateway that has no keys


@dataclass(frozen=True)
class Principal:
    """Who a request comes from; `key` is the id of its key, None where the gateway has no keys."""

    tenant: str
    scopes: frozenset[str]
    key: str | None = None

    def may(self, *scopes: Scope) -> bool:
        """Whether any of these scopes is among its own; `admin` stands for all."""
        return bool(self.scopes & {*scopes, "admin"})


NOBODY = Principal("", frozenset())  # who asks what takes no key
SCRAPER = Principal("", frozenset({"admin"}))  # who reads metrics that are open
ANYONE = Principal(LOCAL, frozenset(SCOPES))


def mark(tenant: str, content: str) -> str:
    """What tells a tenant's content from the same content of another, and names neither."""
    return hashlib.blake2b(f"{tenant}\0{content}".encode(), digest_size=16).hexdigest()
