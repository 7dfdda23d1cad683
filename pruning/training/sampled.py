"""Training a few layers at a time, which others take the turn of after some steps."""

from collections.abc import Sequence
from typing import Any

import torch

from pruning.adapters.merging import seed_of
from pruning.methods.recovery import LisaParams


class Sampling:
    """Frees the drawn layers and what is outside of layers, and freezes the other layers."""

    def __init__(self, model: Any, params: LisaParams, chances: Sequence[float], seed: int):
        """Layers are drawn without replacement, in proportion to `chances`."""
        self._layers, self._params, self._seed = list(model.model.layers), params, seed
        self._chances_L = torch.tensor(chances, dtype=torch.float64)
        inside = {id(p) for layer in self._layers for p in layer.parameters()}
        self._outside = [p for p in model.parameters() if id(p) not in inside]

    def drawn(self, step: int) -> set[int]:
        """The layers that train in a step."""
        seed = seed_of(self._seed, "layers", step // self._params.every)
        generator = torch.Generator().manual_seed(seed)
        possible = int((self._chances_L > 0).sum())
        count = min(self._params.layers, possible)
        drawn = torch.multinomial(self._chances_L, count, generator=generator)
        return set(drawn.tolist())

    def before(self, step: int) -> None:
        """Let the layers of a step be trained."""
        drawn = self.drawn(step)
        for index, layer in enumerate(self._layers):
            for parameter in layer.parameters():
                parameter.requires_grad_(index in drawn)
        for parameter in self._outside:
            parameter.requires_grad_(True)
