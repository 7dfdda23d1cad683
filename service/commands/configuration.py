"""The settings of this process, checked before anything is started."""

import difflib
import os

from pydantic import ValidationError

from service.commands.failure import CommandFailed
from service.settings import Settings

_PREFIX = "GRAFTWORK_"
_OURS_TOO = ("URL", "API_KEY", "DEMO")  # of the command line, not of the server


def load() -> Settings:
    """Settings from the environment; CommandFailed names the variable that makes no sense."""
    try:
        return Settings()
    except ValidationError as error:
        lines = [
            f"{_PREFIX}{str(problem['loc'][0]).upper()}={problem['input']}: {problem['msg']}"
            for problem in error.errors()
        ]
        raise CommandFailed(f"{'; '.join(lines)}; see docs/settings.md") from error


def strangers() -> list[str]:
    """A warning for each GRAFTWORK_ variable that no setting has the name of."""
    known = [_PREFIX + name.upper() for name in (*Settings.model_fields, *_OURS_TOO)]
    warnings = []
    for name in sorted(os.environ):
        if name.startswith(_PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            warnings.append(f"{name} is not a setting and is ignored{hint}")
    return warnings
