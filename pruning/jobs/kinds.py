"""The kinds of jobs: what each is given, its stages, and the module that has them (torch-free)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from pruning.adapters import jobs as adapters
from pruning.adapters.jobs import AnyAdapterSpec
from pruning.recipe import PruneSpec, Recipe
from pruning.sweeps.recipe import SweepSpec

STAGES = ("schedule", "calibrate", "plan", "slice", "recover", "carry", "evaluate", "publish")


def stages_of(recipe: Recipe) -> tuple[str, ...]:
    """The stages that a recipe gives something to do, in order."""
    idle = set()
    if recipe.schedule.name == "one_shot":
        idle.add("schedule")
    if not recipe.recovery:
        idle.add("recover")
    return tuple(stage for stage in STAGES if stage not in idle)


@dataclass(frozen=True)
class Kind:
    """A kind of job."""

    workflow: str  # the name of its workflow
    prefix: str  # of its ids
    spec: TypeAdapter[Any]  # of what a workflow is given
    stages: Callable[[Any], tuple[str, ...]]  # of a recipe
    pipeline: str


PRUNING = Kind("prune", "prunejob-", TypeAdapter(PruneSpec), stages_of, "pruning.pipeline")
ADAPTERS = Kind(
    "adapters",
    "adapterjob-",
    TypeAdapter(AnyAdapterSpec),
    adapters.stages_of,
    "pruning.adapters.pipeline",
)
SWEEPS = Kind(
    "sweep",
    "sweepjob-",
    TypeAdapter(SweepSpec),
    lambda recipe: ("calibrate", "reference", "cells", "publish"),
    "pruning.sweeps.pipeline",
)
KINDS = (PRUNING, ADAPTERS, SWEEPS)


def kind_of(id: str) -> Kind:
    """The kind that a job's id tells."""
    return next(kind for kind in KINDS if id.startswith(kind.prefix))
