"""Profiles of adapters, by what adapter and base contain."""

from pathlib import Path

from service import schema
from service.catalog.tables import Tables, fetch, find
from service.records import Adapter, Profile


class Profiles(Tables):
    """What jobs found of adapters; who brings the same content again has its profile already."""

    def profile(self, adapter: Adapter) -> Profile | None:
        """That of an adapter on its base, or None where no job has made one."""
        with self._engine.connect() as connection:
            base = fetch(connection, schema.bases, f"base {adapter.base_name!r}", id=adapter.base)
            key = {"adapter": adapter.digest, "base": base["digest"]}
            row = find(connection, schema.profiles, **key)
        return Profile(**{**row, "path": Path(row["path"])}) if row else None
