"""Errors of commands: one clear line, with what to type next, and never a traceback."""

import re

from pydantic import ValidationError

from pruning.errors import InvalidInput

_LISTS = {
    "job": "jobs list",
    "base": "bases list",
    "alias": "aliases list",
    "generator": "adapters generators",
}


class CommandFailed(Exception):
    """What went wrong, in a line that ends with the remedy."""


def explain(error: Exception) -> str | None:
    """The line to print for an error that its reader can mend; None for a mistake of ours."""
    from service.client import Refused, Unreachable

    match error:
        case CommandFailed() | InvalidInput():
            return str(error)
        case Unreachable():
            return f"{error}; start one with: graftwork serve   (or name another: --url)"
        case Refused(code="not_found"):
            return f"{error}; {_list_of(str(error))} shows what there is"
        case Refused(status=401):
            return f"{error}; put a valid one into GRAFTWORK_API_KEY"
        case Refused():
            return str(error)
    return None


def _list_of(message: str) -> str:
    """The command that lists what a message says that there is not."""
    what = re.search(rf"\b({'|'.join(_LISTS)})\b", message)
    return f"`graftwork {_LISTS[what[1]] if what else 'adapters list'}`"


def problems(error: ValidationError) -> str:
    """The problems of a document, each with its dotted field; of a part, not of its whole too."""
    found = {problem["loc"]: problem["msg"] for problem in error.errors()}
    inner = {place[:i] for place in found for i in range(len(place))}
    return "; ".join(
        f"{'.'.join(str(part) for part in place)}: {message}"
        for place, message in found.items()
        if place not in inner
    )
