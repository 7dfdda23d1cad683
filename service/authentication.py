"""Who asks: keys are checked before a byte of the body is read.

A gateway without keys answers anybody, but only where nobody else can reach it: on loopback.
"""

import ipaddress
import math
import time
from collections.abc import Mapping
from contextlib import suppress

import anyio.to_thread
import structlog
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service import handlers
from service.catalog import Catalog
from service.errors import Unauthorized
from service.keys import Key, id_of
from service.tenants import ANYONE, NOBODY, Principal

OPEN = dict.fromkeys(("/health", "/ready", "/openapi.json"), NOBODY)
_KEPT_SECONDS = 5.0  # how long a revocation by another process may go unnoticed
_TRUSTED_SECONDS = 300.0  # the same, while the database does not answer
_MOST_KEPT = 10_000
_USED_SECONDS = 60.0  # between notes of a key's last use


class Authenticator:
    """Finds the principal of a key; what it found it keeps for a few seconds."""

    def __init__(self, catalog: Catalog, host: str):
        self._catalog = catalog
        self._required = not is_loopback(host)
        self._looked = float("-inf")
        self._kept: dict[str, tuple[float, Key]] = {}
        self._noted: dict[str, float] = {}

    def forget(self, id: str) -> None:
        """Look a key up again at its next use."""
        self._kept.pop(id, None)

    def known(self, header: str | None) -> Principal | None:
        """The same without a question to the database; None where it takes one."""
        now = time.monotonic()
        if not header and not self._required and now - self._looked <= _KEPT_SECONDS:
            return ANYONE
        scheme, _, text = (header or "").partition(" ")
        text = text.strip()
        if scheme.lower() != "bearer" or (id := id_of(text)) is None:
            return None
        found, key = self._kept.get(id, (float("-inf"), None))
        fresh = now - found <= _KEPT_SECONDS and now - self._noted.get(id, now) <= _USED_SECONDS
        if key is None or not fresh or not key.matches(text) or not key.valid:
            return None
        return key.principal

    async def find(self, header: str | None) -> Principal:
        """Who a header speaks for, as `principal`; only what is not known yet takes a thread."""
        known = self.known(header)
        if known is not None:
            return known
        return await anyio.to_thread.run_sync(self.principal, header)

    def principal(self, header: str | None) -> Principal:
        """Who an Authorization header speaks for; Unauthorized unless it has a valid key."""
        if not header and not self._is_required():
            return ANYONE
        scheme, _, text = (header or "").partition(" ")
        text = text.strip()
        if scheme.lower() == "bearer" and (id := id_of(text)) is not None:
            key = self._key(id)
            if key is not None and key.matches(text) and key.valid:
                self._note(key)
                return key.principal
        if not self._is_required():  # clients of OpenAI's send some key always
            return ANYONE
        raise Unauthorized

    def _is_required(self) -> bool:
        if not self._required and time.monotonic() - self._looked > _KEPT_SECONDS:
            try:
                self._required = self._catalog.has_keys()
            except SQLAlchemyError:
                if math.isinf(self._looked):  # a database that is away has got no key meanwhile
                    raise
            self._looked = time.monotonic()
        return self._required

    def _key(self, id: str) -> Key | None:
        found, key = self._kept.get(id, (float("-inf"), None))
        if time.monotonic() - found > _KEPT_SECONDS:
            try:
                key = self._catalog.find_key(id)
            except SQLAlchemyError:
                if key is not None and time.monotonic() - found < _TRUSTED_SECONDS:
                    return key
                raise
            if key is None:
                return None
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            self._kept[id] = time.monotonic(), key
        return key

    def _note(self, key: Key) -> None:
        now = time.monotonic()
        if now - self._noted.get(key.id, float("-inf")) > _USED_SECONDS:
            self._noted[key.id] = now
            with suppress(SQLAlchemyError):  # a request is worth more than the note
                self._catalog.use_key(key.id)


class Authentication:
    """Put the principal into a request's state, or answer 401."""

    def __init__(
        self, app: ASGIApp, *, authenticator: Authenticator, open: Mapping[str, Principal] = OPEN
    ):
        self._app = app
        self._authenticator = authenticator
        self._open = open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if (principal := self._open.get(scope["path"])) is not None:
            scope["state"]["principal"] = principal
            await self._app(scope, receive, send)
            return
        header = Headers(scope=scope).get("authorization")
        try:
            principal = await self._authenticator.find(header)
        except Unauthorized as error:
            await handlers.response(error)(scope, receive, send)
            return
        scope["state"]["principal"] = principal
        structlog.contextvars.bind_contextvars(tenant=principal.tenant, key=principal.key)
        await self._app(scope, receive, send)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
