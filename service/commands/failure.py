"""Errors of commands: one clear line, with what to type next, and never a traceback."""

from pydantic import ValidationError

from pruning.errors import InvalidInput


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
            return f"{error}; the subcommand `list` shows what there is"
        case Refused(status=401):
            return f"{error}; put a valid one into GRAFTWORK_API_KEY"
        case Refused():
            return str(error)
    return None


def problems(error: ValidationError) -> str:
    """The problems of a document, each with its dotted field."""
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
        for problem in error.errors()
    )
