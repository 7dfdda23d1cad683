"""Data sets by name: folders that the server has, and files of the Hugging Face hub's."""

from dataclasses import dataclass
from pathlib import Path

from pruning.errors import InvalidInput
from pruning.sources import Origin


@dataclass(frozen=True)
class Datasets:
    """A folder of data sets, and where to keep what comes from the hub.

    `endpoint` is the address of the hub, or of a mirror; that of HF_ENDPOINT where not given.
    """

    folder: Path
    cache: Path
    endpoint: str | None = None

    def path(self, origin: Origin, place: str) -> Path:
        """The file that an origin names; one of the hub is downloaded, unless it is kept already.

        A folder of the server goes before a data set of the hub.  InvalidInput names the entry
        of the recipe that leads nowhere, and says what to do.
        """
        assert origin.dataset is not None
        assert origin.part is not None
        folder = self.folder.absolute() / origin.dataset
        if not folder.is_dir():
            return self._of_hub(origin.dataset, origin.part, origin.revision, place)
        if not (folder / origin.part).is_file():
            files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))
            raise InvalidInput(
                f"{place}.part", f"{origin.dataset} has no such file; it has: {_few(files)}"
            )
        return folder / origin.part

    def _of_hub(self, name: str, part: str, revision: str, place: str) -> Path:
        from huggingface_hub import errors, hf_hub_download  # the gateway starts without it

        try:
            path = hf_hub_download(
                name,
                part,
                repo_type="dataset",
                revision=revision,
                cache_dir=self.cache,
                endpoint=self.endpoint,
            )
        except (errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError) as error:
            wrong = "revision" if isinstance(error, errors.RevisionNotFoundError) else "part"
            raise InvalidInput(f"{place}.{wrong}", f"the hub's {name} has none such") from error
        except (OSError, ValueError) as error:
            raise InvalidInput(
                f"{place}.dataset",
                f"there is no folder {name!r} among the server's data sets, and the hub gave "
                f"nothing ({type(error).__name__}); put its files into that folder, or upload "
                "the text and name it by file",
                code="not_found",
            ) from error
        return Path(path).resolve()


def _few(names: list[str]) -> str:
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "") or "nothing"
