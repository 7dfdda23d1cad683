"""Statistics that a forward walk alone shows: of the inputs of linears, and of whole layers."""

# Shape suffixes:  S = sequences,  T = tokens,  C = channels of a linear's input.

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

from pruning.architectures.layout import Block
from pruning.methods.entry import Statistic
from pruning.progress import Progress
from pruning.statistics.absolute import AbsoluteMeans
from pruning.statistics.influence import WHOLE, Influence
from pruning.statistics.moments import Moments
from pruning.statistics.released import ReleasedFluctuation
from pruning.statistics.streaming import Stream

Key = tuple[int, str]  # layer, linear


def watched(
    stream: Stream, needs: Collection[Statistic], keep_inputs: bool, progress: Progress
) -> dict[str, Any]:
    """Records by field of Statistics and by key, of what `needs` names and a forward walk shows."""
    found: dict[str, Any] = {}
    watches = [watch for watch in _WATCHES if watch.statistic in needs]
    hooks: list[Any] = []

    def prepare(index: int, layer: nn.Module) -> None:
        while hooks:
            hooks.pop().remove()
        for watch in watches:
            records = found.setdefault(watch.field, {})
            for block in stream.checkpoint.geometry.architecture.blocks:
                linear = watch.linear(block)
                module = layer.get_submodule(f"{block.name}.{linear}")
                hook = partial(_update, records, (index, linear), watch.updated)
                hooks.append(module.register_forward_pre_hook(hook))
        if "influence" in needs:
            turned = partial(_turn, found.setdefault("influence", {}), (index, WHOLE))
            hooks.append(layer.register_forward_hook(turned))

    stream.forward(prepare, keep_inputs=keep_inputs, progress=progress)
    while hooks:
        hooks.pop().remove()
    return found


@dataclass(frozen=True)
class _Watch:
    """A statistic of the inputs of some linears: a record, and how more inputs change it."""

    statistic: Statistic
    field: str
    updated: Callable[[Any, Tensor], Any]
    linear: Callable[[Block], str] = attrgetter("reader")


_WATCHES = (
    _Watch("input_moments", "moments", Moments.updated),
    _Watch("hidden_moments", "moments", Moments.updated, attrgetter("entrance")),
    _Watch("absolute_means", "absolute_means", AbsoluteMeans.updated),
    _Watch("released_fluctuation", "released_fluctuation", ReleasedFluctuation.updated),
)


def _update(
    records: dict[Key, Any],
    key: Key,
    updated: Callable[[Any, Tensor], Any],
    module: nn.Module,
    inputs: tuple[Tensor],
) -> None:
    records[key] = updated(records.get(key), inputs[0])


def _turn(
    records: dict[Key, Any], key: Key, layer: nn.Module, inputs: tuple[Tensor], output: Tensor
) -> None:
    records[key] = Influence.updated(records.get(key), inputs[0], output)
