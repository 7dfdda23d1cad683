"""API keys, of all tenants."""

from dataclasses import replace

import sqlalchemy as sa

from service import keys, schema
from service.catalog.audit import Audit
from service.catalog.tables import fetch, find, insert, now
from service.errors import Conflict
from service.keys import Key
from service.tenants import Scope


class Keys(Audit):
    """Keys stay when they are revoked, so that a gateway that had one never opens again."""

    def keys(self, tenant: str | None = None) -> tuple[Key, ...]:
        """All keys, or those of one tenant, oldest first."""
        query = sa.select(schema.keys).order_by(schema.keys.c.created, schema.keys.c.id)
        if tenant is not None:
            query = query.where(schema.keys.c.tenant == tenant)
        return tuple(_key(row) for row in self._all(query))

    def has_keys(self) -> bool:
        """Whether there is or was any key."""
        return bool(self._all(sa.select(schema.keys.c.id).limit(1)))

    def find_key(self, id: str) -> Key | None:
        with self._engine.connect() as connection:
            row = find(connection, schema.keys, id=id)
        return _key(row) if row else None

    def add_key(
        self, tenant: str, name: str, scopes: tuple[Scope, ...], expires: int | None = None
    ) -> tuple[Key, str]:
        """A new key, and its text, which nobody can ask for again."""
        id, text = keys.generate()
        key = Key(id, tenant, name, keys.digest_of(text), scopes, now(), expires)
        with self._write() as connection:
            insert(connection, schema.keys, _row(key), f"key {id}")
            self.of(tenant)._note(connection, "key.create", key.prefix)
        return key, text

    def rotate_key(self, id: str, grace: int = 0) -> tuple[Key, str]:
        """A successor with the same rights; the old key ends after `grace` seconds.

        Raises NotFound for an unknown key, Conflict for one that is no longer valid.
        """
        new_id, text = keys.generate()
        with self._write() as connection:
            old = _key(fetch(connection, schema.keys, f"key {id!r}", id=id))
            if not old.valid:
                raise Conflict(f"key {id!r} is no longer valid; create another", param="id")
            digest = keys.digest_of(text)
            key = replace(old, id=new_id, digest=digest, created=now(), used=None)
            insert(connection, schema.keys, _row(key), f"key {new_id}")
            _set(connection, id, revoked=now() + grace)
            self.of(old.tenant)._note(connection, "key.rotate", f"{old.prefix} to {key.prefix}")
        return key, text

    def revoke_key(self, id: str) -> Key:
        """End a key now; NotFound for an unknown one."""
        with self._write() as connection:
            key = _key(fetch(connection, schema.keys, f"key {id!r}", id=id))
            revoked = min(now(), key.revoked or now())
            _set(connection, id, revoked=revoked)
            self.of(key.tenant)._note(connection, "key.revoke", key.prefix)
        return replace(key, revoked=revoked)

    def use_key(self, id: str) -> None:
        """Note that a key was used now."""
        with self._write() as connection:
            _set(connection, id, used=now())


def _set(connection: sa.Connection, id: str, **values: int) -> None:
    connection.execute(sa.update(schema.keys).where(schema.keys.c.id == id).values(values))


def _row(key: Key) -> dict[str, object]:
    return {**vars(key), "scopes": list(key.scopes)}


def _key(row: sa.RowMapping) -> Key:
    return Key(**{**row, "scopes": tuple(row["scopes"])})
