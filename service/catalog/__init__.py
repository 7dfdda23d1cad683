"""The catalog: what there is, by name, in SQL, as frozen data."""

from service.catalog import migrations
from service.catalog.adapters import Adapters
from service.catalog.aliases import Aliases
from service.catalog.bases import Bases
from service.catalog.compositions import Compositions
from service.catalog.files import Files
from service.catalog.generators import Generators
from service.catalog.keys import Keys
from service.catalog.profiles import Profiles
from service.catalog.publication import Publication
from service.catalog.quotas import Quotas
from service.catalog.revision import Revision
from service.database import connect
from service.quotas import UNLIMITED, Quota


class Catalog(
    Publication,
    Bases,
    Adapters,
    Profiles,
    Generators,
    Compositions,
    Aliases,
    Files,
    Keys,
    Quotas,
):
    """Every lookup raises NotFound for an unknown name; every write is one transaction.

    Writers take turns (SQLite's write lock, an advisory lock on PostgreSQL), so that content on
    disk can appear and go together with the rows that refer to it.
    """

    def __init__(self, url: str, quota: Quota = UNLIMITED):
        """Open a database whose tenants have `quota` unless they have their own."""
        super().__init__(connect(url))
        self.revision = Revision(self._engine)
        self._common = quota
        migrations.upgrade(self._engine)

    def close(self) -> None:
        self.revision.close()
        self._engine.dispose()
