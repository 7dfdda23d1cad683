"""The files behind the texts of a recipe: uploads, parts of data sets, and adapters' own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pruning.adapters.peft_format import CALIBRATION
from pruning.errors import InvalidInput
from pruning.recipe import Text
from pruning.sources import Origin
from service.catalog import Catalog
from service.datasets import Datasets
from service.errors import NotFound

Found = TypeVar("Found")


@dataclass(frozen=True)
class Texts:
    """Finds them for a job that carries `adapters`, names with their directories."""

    catalog: Catalog
    datasets: Datasets
    adapters: Mapping[str, Path]

    def paths(self, text: Text, purpose: str) -> tuple[Path, ...]:
        """One file for each origin of a text; InvalidInput names the one that is unknown."""
        return tuple(self.path(origin, place) for place, origin in text.origins(purpose))

    def path(self, origin: Origin, place: str) -> Path:
        """The file of an origin, whose place in the recipe is `place`."""
        if origin.dataset is not None:
            return self.datasets.path(origin, place)
        if (name := origin.adapter) is not None:
            return self._of_adapter(name, f"{place}.adapter")
        id = origin.file or ""
        return lookup(f"{place}.file", lambda: self.catalog.file(id)).path.absolute()

    def _of_adapter(self, name: str, field: str) -> Path:
        if name not in self.adapters:
            names = ", ".join(sorted(self.adapters)) or "none"
            raise InvalidInput(field, f"the job carries no such adapter, but: {names}")
        path = self.adapters[name] / CALIBRATION
        if not path.is_file():
            raise InvalidInput(
                field, f"{name} came without {CALIBRATION}; register it again with one"
            )
        return path


def lookup(field: str, find: Callable[[], Found]) -> Found:
    """What `find` finds; InvalidInput on `field` where it raises NotFound."""
    try:
        return find()
    except NotFound as error:
        raise InvalidInput(field, f"{error}; register it first", code="not_found") from error
