"""API keys: 256 random bits, shown once; the database has their SHA-256 and an id to show.

A key reads gw-ID-SECRET.  A secret of full entropy needs no slow hash: it cannot be guessed from
its digest (NIST SP 800-63B-4, section 3.1.2.2, asks for one only below 112 bits).
"""

import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass, field

from service.tenants import Principal, Scope

_KEY = re.compile(r"gw-(?P<id>[0-9a-f]{12})-[A-Za-z0-9_-]{43}")
SECRET = re.compile(r"gw-([0-9a-f]{12})-[A-Za-z0-9_-]{8,}")  # in a text, whole or cut off


@dataclass(frozen=True)
class Key:
    """A key as the catalog has it; times are Unix seconds, `digest` is that of the whole key."""

    id: str
    tenant: str
    name: str
    digest: str = field(repr=False)
    scopes: tuple[Scope, ...]
    created: int
    expires: int | None = None
    revoked: int | None = None
    used: int | None = None

    @property
    def prefix(self) -> str:
        """How it begins: enough to tell it from others."""
        return f"gw-{self.id}"

    @property
    def valid(self) -> bool:
        """Whether it is neither revoked nor past its time."""
        now = time.time()
        return all(end is None or now < end for end in (self.revoked, self.expires))

    @property
    def principal(self) -> Principal:
        return Principal(self.tenant, frozenset(self.scopes), self.id)

    def matches(self, text: str) -> bool:
        """Whether `text` is this key; takes the same time wherever it differs."""
        return hmac.compare_digest(self.digest, digest_of(text))


def generate() -> tuple[str, str]:
    """A new key's id, and the key."""
    id = secrets.token_hex(6)
    return id, f"gw-{id}-{secrets.token_urlsafe(32)}"


def id_of(text: str) -> str | None:
    """The id in a key; None for what is no key."""
    match = _KEY.fullmatch(text)
    return match["id"] if match else None


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
