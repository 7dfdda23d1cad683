"""Which model a request asks for, kept until the catalog changes: no query for most requests."""

import json
from typing import Any

import anyio.to_thread

from service.catalog import Catalog
from service.composition import FIELDS
from service.models import Model, requested, resolve

_MOST_KEPT = 10_000
_Key = tuple[str, str, str]  # tenant, id, what spells a composition beside it


class Resolver:
    """Keeps what was found; what was not found is looked up again each time."""

    def __init__(self, catalog: Catalog):
        self._catalog = catalog
        self._revision = catalog.revision
        self._kept: dict[_Key, Model] = {}
        self._of = -1  # the revision that all of it is of

    async def find(self, tenant: str, body: Any) -> Model:
        """The served model that a tenant asks for with this body, as `models.resolve`."""
        key = (tenant, requested(body), _spelled(body))
        if self._of != (revision := self._revision.number):
            self._kept.clear()
            self._of = revision
        if (model := self._kept.get(key)) is None:
            model = await anyio.to_thread.run_sync(resolve, self._catalog.of(tenant), body)
            if self._revision.number == revision == self._of and len(self._kept) < _MOST_KEPT:
                self._kept[key] = model
        return model


def _spelled(body: dict[str, Any]) -> str:
    beside = {name: body[name] for name in FIELDS if body.get(name)}
    return json.dumps(beside, sort_keys=True) if beside else ""
