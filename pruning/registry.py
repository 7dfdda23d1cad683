"""Binds the catalogue's methods to their code: one module per method, named after it."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from torch import Tensor

from pruning.adapters.compression import Compress
from pruning.adapters.merging import Merge
from pruning.adapters.train.tuned import Form, Hook, Init, Ranks
from pruning.allocation.budget import Space
from pruning.geometry import Geometry
from pruning.methods import resolve
from pruning.methods.entry import Kind as MethodKind
from pruning.methods.entry import MethodEntry, Params
from pruning.plan import Plan, Widths
from pruning.progress import Progress
from pruning.recipe import Method, PruneSpec, Recipe
from pruning.stats import Statistics
from pruning.units import KINDS, Kind
from pruning.weights.checkpoint import Checkpoint

_PACKAGES: Mapping[MethodKind, str] = {
    "criterion": "pruning.criteria",
    "allocator": "pruning.allocators",
    "recovery": "pruning.recovery",
    "merge": "pruning.adapters.merge",
    "compress": "pruning.adapters.compress",
    "schedule": "pruning.schedules",
    "ranks": "pruning.adapters.ranks",
    "init": "pruning.adapters.init",
    "form": "pruning.adapters.form",
    "hook": "pruning.adapters.hooks",
}


@dataclass(frozen=True)
class LayerView:
    """What a criterion may look at: one layer of the dense base."""

    geometry: Geometry
    index: int
    weights: Mapping[str, Tensor]  # linear → (outputs, inputs), float32
    statistics: Statistics
    seed: int
    kinds: tuple[Kind, ...] = KINDS  # that are to be scored


@dataclass(frozen=True)
class LayerScores:
    """One float64 score per unit of a kind, (U,); the lowest leaves first."""

    kv_group: Tensor
    ffn_channel: Tensor
    query_head: Tensor | None = None  # where query heads may leave


class Criterion(Protocol):
    """Scores the units of a layer."""

    def __call__(self, layer: LayerView, params: Any) -> LayerScores: ...


@dataclass(frozen=True)
class Problem:
    """What an allocator may look at."""

    checkpoint: Checkpoint
    recipe: Recipe
    space: Space
    scores: Sequence[LayerScores]  # of all layers
    comparable: bool  # whether scores of different layers are on one scale
    statistics: Statistics  # what its `needs` name is there
    calibration: Callable[[], Tensor]  # the sequences, (sequences, tokens)
    progress: Progress


class Allocator(Protocol):
    """Decides how many units of each kind every layer keeps; selection then takes the best.

    What comes out lies in the problem's space and meets its target as finely as units allow.
    """

    def __call__(self, problem: Problem, params: Any) -> Widths: ...


@dataclass(frozen=True)
class RecoveryContext:
    """What a recovery method works with; all directories are on one disk."""

    spec: PruneSpec
    checkpoint: Checkpoint  # the base that was cut: the dense one, or as earlier cuts left it
    plan: Plan
    statistics: Statistics
    ids_ST: Tensor  # the calibration sequences; (sequences, tokens), int64
    source: Path  # the slim base so far
    destination: Path  # where the repaired one goes; there is nothing yet
    state: Path  # a directory that a kill leaves as it is: what is found there was done


class Recovery(Protocol):
    """Writes a repaired slim base, complete and servable; killed and run again, the same bytes."""

    def __call__(self, context: RecoveryContext, params: Any, progress: Progress) -> None: ...


class Schedule(Protocol):
    """The targets of all cuts, ascending; the last one is the recipe's."""

    def __call__(self, target: float, params: Any) -> list[float]: ...


class Approach(Protocol):
    """Leaves the base that the last cut is made of at `lifted_base(work)`."""

    def __call__(
        self,
        spec: PruneSpec,
        work: Path,
        stages: Mapping[str, Callable[[PruneSpec, Path, Progress], None]],
        progress: Progress,
    ) -> None: ...


def criterion(method: Method) -> tuple[Criterion, MethodEntry, Params]:
    """The code of a criterion, its entry and its parameters.  Raises InvalidInput."""
    entry, params = resolve("criterion", method)
    return cast(Criterion, _module(entry).score), entry, params


def allocator(method: Method) -> tuple[Allocator, MethodEntry, Params]:
    """The code of an allocator, its entry and its parameters.  Raises InvalidInput."""
    entry, params = resolve("allocator", method)
    return cast(Allocator, _module(entry).allocate), entry, params


def recovery(method: Method) -> tuple[Recovery, MethodEntry, Params]:
    """The code of a recovery method, its entry and its parameters.  Raises InvalidInput."""
    entry, params = resolve("recovery", method)
    return cast(Recovery, _module(entry).recover), entry, params


def merge(method: Method) -> tuple[Merge, MethodEntry, Params]:
    """The code of a merge method, its entry and its parameters.  Raises InvalidInput."""
    entry, params = resolve("merge", method)
    return cast(Merge, _module(entry).merge), entry, params


def compress(method: Method) -> tuple[Compress, MethodEntry, Params]:
    """The code of a compression method, its entry and its parameters.  Raises InvalidInput."""
    entry, params = resolve("compress", method)
    return cast(Compress, _module(entry).compress), entry, params


def ranks(method: Method) -> tuple[Ranks, MethodEntry, Params]:
    """The code of a way to share ranks out, its entry and its parameters.  Raises InvalidInput."""
    entry, params = resolve("ranks", method)
    return cast(Ranks, _module(entry).share), entry, params


def init(method: Method) -> tuple[Init, MethodEntry, Params]:
    """The code of an initialisation, its entry and its parameters.  Raises InvalidInput."""
    entry, params = resolve("init", method)
    return cast(Init, _module(entry).begin), entry, params


def form(method: Method) -> tuple[Form, MethodEntry, Params]:
    """The code of a form, its entry and its parameters.  Raises InvalidInput."""
    entry, params = resolve("form", method)
    return cast(Form, _module(entry).attach), entry, params


def hook(method: Method) -> tuple[Hook, MethodEntry, Params]:
    """The code of a hook, its entry and its parameters.  Raises InvalidInput."""
    entry, params = resolve("hook", method)
    return cast(Hook, _module(entry).attach), entry, params


def schedule(method: Method) -> tuple[Schedule, MethodEntry, Params]:
    """The code of a schedule, its entry and its parameters.  Raises InvalidInput."""
    entry, params = resolve("schedule", method)
    return cast(Schedule, _module(entry).targets), entry, params


def own_approach(method: Method) -> Approach | None:
    """What a schedule does before the last cut, if that is not a number of cuts."""
    entry, _ = resolve("schedule", method)
    return cast(Approach | None, getattr(_module(entry), "approach", None))


def _module(entry: MethodEntry) -> Any:
    return importlib.import_module(f"{_PACKAGES[entry.kind]}.{entry.name}")
