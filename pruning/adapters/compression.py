"""Compression, whatever the method: the bags of one adapter in, those of smaller ones out."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor

from pruning.adapters.algebra import Bags
from pruning.adapters.atoms import Key
from pruning.weights.tensors import block_of

Deltas = Mapping[Key, Tensor]  # ΔW by linear, (outputs, inputs)
Probe = Callable[[Deltas], Tensor]  # outputs of the base's last layer with these ΔW on some rows


class Compress(Protocol):
    """Smaller adapters by what sets them apart ("" for a single one).

    `probe` is there for methods that need rows.
    """

    def __call__(
        self, bags: Bags, params: Any, seed: int, probe: Probe | None
    ) -> Mapping[str, Bags]: ...


@contextmanager
def applied(model: Any, deltas: Deltas) -> Iterator[None]:
    """Let a base in memory behave as with an adapter; afterwards its weights are as before."""
    weights = {key: linear_of(model, key).weight.data for key in deltas}
    before = {key: weight.clone() for key, weight in weights.items()}
    try:
        for key, delta in deltas.items():
            weights[key].add_(delta.to(weights[key]))
        yield
    finally:
        for key, weight in before.items():
            weights[key].copy_(weight)


def linear_of(model: Any, key: Key) -> Any:
    """The module of a linear."""
    layer, linear = key
    return getattr(getattr(model.model.layers[layer], block_of(linear)), linear)
