"""Whether catalog and disk agree: every file of every artifact, adapter and text by its digest."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from pruning import artifacts
from pruning.adapters.peft_format import adapter_digest
from pruning.artifacts import DamagedArtifact
from pruning.digest import file_digest, tree_digest
from service import content
from service.catalog import Catalog
from service.errors import BaseDamaged, ContentDamaged
from service.records import Adapter, base_name
from service.settings import Settings


@dataclass(frozen=True)
class Finding:
    """Where catalog and disk differ; what is orphaned does no harm, `graftwork gc` removes it."""

    kind: Literal["missing", "damaged", "orphaned"]
    path: Path
    message: str


def verify(settings: Settings, catalog: Catalog) -> Iterator[Finding]:
    """Read all that the catalog names and all that lies in the stores; what is not as it was."""
    store = settings.artifacts.absolute()
    sealed = {path: partial(_check_artifact, path) for path in _entries(store)}
    named = {
        path: partial(_check, kind, path, digest)
        for kind, path, digest in catalog.contents()
        if not (store in path.parents and path.exists())  # what is there is a part of an artifact
    }
    for path, check in sorted({**sealed, **named}.items()):
        try:
            check()
        except DamagedArtifact as error:
            yield Finding("damaged" if path.exists() else "missing", path, str(error))
    for folder in (store, settings.adapters, settings.files):
        for path in _entries(folder):
            if not (catalog.refers_to(path) or artifacts.stands_alone(path)):
                yield Finding("orphaned", path, "nothing refers to it")


def quarantine(settings: Settings, finding: Finding) -> Path | None:
    """Put damaged content of the stores aside; what is another's, a base, stays where it is."""
    stores = (settings.artifacts, settings.adapters, settings.files)
    own = {store.absolute() for store in stores} & {*finding.path.parents}
    if finding.kind != "damaged" or not own:
        return None
    return content.quarantine(finding.path, settings.quarantine, finding.message)


class Loading:
    """Checks what we store before engines read it."""

    def __init__(self, settings: Settings):
        self._settings = settings

    def check(self, adapter: Adapter) -> None:
        """Raise ContentDamaged, and put the content aside, unless it is what was registered."""
        try:
            _check("adapters", adapter.path, adapter.digest)
        except DamagedArtifact as error:
            if adapter.path.exists():
                content.quarantine(adapter.path, self._settings.quarantine, str(error))
            raise ContentDamaged(
                f"the content of {adapter.model} is damaged and was put aside; "
                f"give it again: PUT /v1/adapters/{adapter.model}"
            ) from error

    def check_base(self, id: str, path: Path) -> None:
        """Raise BaseDamaged, and put the artifact aside, unless a slim base is what was made.

        A directory that lies elsewhere is not ours to judge.
        """
        artifact = path.parent
        if artifact.parent != self._settings.artifacts.absolute():
            return
        try:
            _check_artifact(artifact)
        except DamagedArtifact as error:
            if artifact.exists():
                content.quarantine(artifact, self._settings.quarantine, str(error))
            raise BaseDamaged(
                f"the artifact of {base_name(id)} is damaged and was put aside; "
                "delete this base with its adapters, and run its job again"
            ) from error


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.absolute().glob("[!.]*"))


def _check_artifact(path: Path) -> None:
    if artifacts.verify(path).digest != path.name:
        raise DamagedArtifact(f"{path} holds another artifact than its name says")


def _check(kind: str, path: Path, digest: str) -> None:
    """DamagedArtifact unless the content has its digest; of an artifact's part, if it is there."""
    digests: dict[str, Callable[[Path], str]] = {
        "adapters": adapter_digest,
        "files": file_digest,
        "bases": _base_digest,
    }
    if not path.exists():
        raise DamagedArtifact(f"{path} is not there")
    if kind in digests and digests[kind](path) != digest:
        raise DamagedArtifact(f"{path} has changed: its digest is not the registered one")


def _base_digest(path: Path) -> str:
    """As `service.bases` takes it of a checkpoint."""
    return tree_digest(path, [file.name for file in path.iterdir() if file.is_file()])
