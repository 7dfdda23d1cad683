"""Texts that a recipe names by path: uploaded before its job is started."""

import re
from collections.abc import Mapping
from pathlib import Path

from service.client import Client, Json
from service.commands.failure import CommandFailed

_UPLOADED = re.compile(r"file-[0-9a-f]{24}")


def upload(client: Client, origins: Mapping[str, tuple[Json, str]], folder: Path) -> None:
    """Put ids in the place of the paths, relative to `folder`, that entries `file` have.

    `origins` by their place in the recipe, each with the purpose of its text.  CommandFailed for a
    path that leads nowhere, before anything is uploaded.
    """
    local = {
        place: (origin, purpose)
        for place, (origin, purpose) in origins.items()
        if (file := origin.get("file")) and not _UPLOADED.fullmatch(file)
    }
    for place, (origin, _) in local.items():
        if not (folder / origin["file"]).is_file():
            raise CommandFailed(
                f"{place}.file: {folder / origin['file']} does not exist; give a path relative to "
                "the recipe, or the id of an uploaded file"
            )
    for origin, purpose in local.values():
        origin["file"] = client.upload_text(folder / origin["file"], purpose=purpose)["id"]
