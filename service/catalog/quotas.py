"""Quotas of tenants, and the bytes that they have stored."""

from collections.abc import Collection

import sqlalchemy as sa

from service import schema
from service.catalog.audit import Audit
from service.catalog.tables import find
from service.errors import QuotaExceeded
from service.quotas import UNLIMITED, Quota

_STORED = (schema.files, schema.adapters, schema.generators, schema.bases)


class Quotas(Audit):
    """Each view is held to the quota of its tenant."""

    _common = UNLIMITED  # of all tenants that have none of their own

    def quota(self) -> Quota:
        """What the tenant may take."""
        return self.own_quota().over(self._common)

    def own_quota(self) -> Quota:
        """What was set for this tenant alone."""
        with self._engine.connect() as connection:
            return _quota(connection, self._tenant)

    def set_quota(self, quota: Quota) -> None:
        """Set what the tenant may take; what `quota` does not say is as for all again."""
        values = {"tenant": self._tenant, "quota": quota.model_dump(exclude_unset=True)}
        with self._write() as connection:
            table = schema.quotas
            connection.execute(sa.delete(table).where(table.c.tenant == self._tenant))
            connection.execute(sa.insert(table).values(values))
            self._note(connection, "quota.set", quota.model_dump_json(exclude_unset=True))

    def stored_bytes(self) -> int:
        """Bytes of everything that is the tenant's."""
        with self._engine.connect() as connection:
            return self._stored(connection)

    def tenants(self) -> tuple[str, ...]:
        """Everybody who has a key, a quota or anything else here, by name."""
        tables: Collection[sa.Table] = (*_STORED, schema.compositions, schema.keys, schema.quotas)
        every = sa.union(*(sa.select(table.c.tenant) for table in tables))
        with self._engine.connect() as connection:
            return tuple(sorted(connection.scalars(every)))

    def check_room(self) -> None:
        """QuotaExceeded when the tenant stores more than it may; jobs may have gone above it."""
        with self._engine.connect() as connection:
            self._check_room(connection)

    def _check_room(self, connection: sa.Connection) -> None:
        """QuotaExceeded when the tenant stores more than it may, with what was just entered."""
        most = _quota(connection, self._tenant).over(self._common).stored_bytes
        if most is not None and (stored := self._stored(connection)) > most:
            raise QuotaExceeded(
                f"{stored:,} bytes would be stored, of the {most:,} that the tenant may; "
                "delete files, adapters, generators or slim bases first"
            )

    def _stored(self, connection: sa.Connection) -> int:
        sums = [
            sa.select(sa.func.coalesce(sa.func.sum(table.c.bytes), 0))
            .where(table.c.tenant == self._tenant)
            .scalar_subquery()
            for table in _STORED
        ]
        stored = connection.scalar(sa.select(sum(sums[1:], sums[0])))
        assert stored is not None
        return int(stored)


def _quota(connection: sa.Connection, tenant: str) -> Quota:
    row = find(connection, schema.quotas, tenant=tenant)
    return Quota.model_validate(row["quota"]) if row else UNLIMITED
