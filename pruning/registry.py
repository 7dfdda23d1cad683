"""Binds the catalogue's methods to their code: one module per method, named after it."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from torch import Tensor

from pruning.geometry import Geometry
from pruning.methods import Kind, MethodEntry, Params, resolve
from pruning.plan import Plan
from pruning.recipe import Method, Recipe
from pruning.stats import Statistics

_PACKAGES: Mapping[Kind, str] = {
    "criterion": "pruning.criteria",
    "allocator": "pruning.allocators",
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


def criterion(method: Method) -> tuple[Criterion, MethodEntry, Params]:
    """The code of a criterion, its entry and its parameters.  Raises InvalidInput."""
    entry, params = resolve("criterion", method)
    return cast(Criterion, _module(entry).score), entry, params


def allocator(method: Method) -> tuple[Allocator, MethodEntry, Params]:
    """The code of an allocator, its entry and its parameters.  Raises InvalidInput."""
    entry, params = resolve("allocator", method)
    return cast(Allocator, _module(entry).allocate), entry, params


def _module(entry: MethodEntry) -> Any:
    return importlib.import_module(f"{_PACKAGES[entry.kind]}.{entry.name}")
