"""Binds the catalogue's methods to their code: one module per method, named after it."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from torch import Tensor

from pruning.adapters.compression import Compress
from pruning.adapters.merging import Merge
from pruning.checkpoint import Checkpoint
from pruning.geometry import Geometry
from pruning.methods import Kind, MethodEntry, Params, resolve
from pruning.plan import Plan
from pruning.progress import Progress
from pruning.recipe import Method, PruneSpec, Recipe
from pruning.stats import Statistics

_PACKAGES: Mapping[Kind, str] = {
    "criterion": "pruning.criteria",
    "allocator": "pruning.allocators",
    "recovery": "pruning.recovery",
    "merge": "pruning.adapters.merge",
    "compress": "pruning.adapters.compress",
    "schedule": "pruning.schedules",
}


@dataclass(frozen=True)
class LayerView:
    """What a criterion may look at: one layer of the dense base."""

    geometry: Geometry
    index: int
    weights: Mapping[str, Tensor]  # linear → (outputs, inputs), float32
    statistics: Statistics
    seed: int


@dataclass(frozen=True)
class LayerScores:
    """One float64 score per unit, the lowest leaves first: (KV groups,) and (FFN channels,)."""

    kv_group: Tensor
    ffn_channel: Tensor


class Criterion(Protocol):
    """Scores the units of a layer."""

    def __call__(self, layer: LayerView, params: Any) -> LayerScores: ...


class Allocator(Protocol):
    """Turns the scores of all layers into a plan that meets the recipe's target and floors."""

    def __call__(
        self,
        geometry: Geometry,
        scores: Sequence[LayerScores],
        recipe: Recipe,
        params: Any,
        comparable: bool,
    ) -> Plan: ...


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


def schedule(method: Method) -> tuple[Schedule, MethodEntry, Params]:
    """The code of a schedule, its entry and its parameters.  Raises InvalidInput."""
    entry, params = resolve("schedule", method)
    return cast(Schedule, _module(entry).targets), entry, params


def _module(entry: MethodEntry) -> Any:
    return importlib.import_module(f"{_PACKAGES[entry.kind]}.{entry.name}")
