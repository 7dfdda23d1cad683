"""The catalogue of methods: names, papers and parameters (torch-free; registry has the code)."""

from pydantic import ValidationError

from pruning.errors import InvalidInput
from pruning.methods import adapters, allocators, criteria, recovery, schedules, training
from pruning.methods.entry import Kind, MethodEntry, Params
from pruning.recipe import Method

ENTRIES = (
    *criteria.ENTRIES,
    *allocators.ENTRIES,
    *schedules.ENTRIES,
    *recovery.ENTRIES,
    *adapters.ENTRIES,
    *training.ENTRIES,
)
CATALOGUE: dict[tuple[Kind, str], MethodEntry] = {(e.kind, e.name): e for e in ENTRIES}


def names(kind: Kind) -> list[str]:
    """The methods of a kind, in alphabetical order."""
    return sorted(name for k, name in CATALOGUE if k == kind)


def resolve(kind: Kind, method: Method) -> tuple[MethodEntry, Params]:
    """The method that a recipe names, and its parameters with the defaults filled in.

    Raises InvalidInput for an unknown method, an unknown parameter or an invalid value.
    """
    entry = CATALOGUE.get((kind, method.name))
    if entry is None:
        raise InvalidInput(
            f"{kind}.name",
            f"there is no {kind} {method.name!r}; choose one of: {', '.join(names(kind))}",
            code=f"unknown_{kind}",
        )
    try:
        return entry, entry.params.model_validate(method.params)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([kind, "params", *map(str, first["loc"])])
        known = ", ".join(entry.params.model_fields) or "none"
        raise InvalidInput(
            where,
            f"{first['msg']}; parameters of {method.name}: {known}",
        ) from None
