"""Grams whose tokens weigh as much as the loss minds errors in what is read there.

Kim et al., "GuidedQuant: Large Language Model Quantization via Exploiting End Loss Guidance",
ICML 2025, https://arxiv.org/abs/2505.07004, with one group of outputs: Σ ‖g‖² x xᵀ for the inputs x
of a reader and the gradients g of the loss with respect to its outputs, token by token.
"""

# Shape suffixes:  S = sequences,  T = tokens,  C = inputs of a reader,  H = its outputs.

from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pruning.progress import Progress, part
from pruning.statistics.grams import Gram, StoredGrams
from pruning.statistics.streaming import Stream, unwatched
from pruning.units import BLOCKS, KINDS, READERS


def guided_grams(stream: Stream, out: Path, progress: Progress) -> None:
    """Store the guided Grams of all readers of a base; two of them are ever in memory."""
    stream.forward(unwatched, keep_inputs=True, progress=part(progress, 0, 0.3))
    walk = _Walk(StoredGrams(out), stream.ids_ST[:, 1:].numel())
    stream.backward(walk.finish, part(progress, 0.3, 1), prepare=walk.prepare)


class _Walk:
    """Adds tokens to the Grams of a layer as gradients flow through its readers."""

    def __init__(self, grams: StoredGrams, num_targets: int):
        self.grams, self.num_targets = grams, num_targets
        self._hooks: list[Any] = []
        self._found: dict[str, Gram] = {}

    def prepare(self, index: int, layer: nn.Module) -> None:
        for kind in KINDS:
            linear = READERS[kind]
            module = layer.get_submodule(f"{BLOCKS[kind]}.{linear}")
            self._hooks.append(module.register_forward_hook(partial(self._watch, linear)))

    def finish(self, index: int, layer: nn.Module) -> None:
        while self._hooks:
            self._hooks.pop().remove()
        for linear, gram in self._found.items():
            self.grams.store((index, linear), gram)
        self._found.clear()

    def _watch(
        self, linear: str, module: nn.Module, inputs: tuple[Tensor], output_STH: Tensor
    ) -> None:
        add = partial(self._add, linear, inputs[0].detach())
        output_STH.register_hook(add)  # type: ignore[no-untyped-call]

    def _add(self, linear: str, inputs_STC: Tensor, gradient_STH: Tensor) -> None:
        # the walk's objective is a mean over targets
        weight_ST1 = self.num_targets * gradient_STH.norm(dim=-1, keepdim=True)
        guided_NC = (inputs_STC * weight_ST1).flatten(0, 1)
        if linear not in self._found:
            self._found[linear] = Gram(guided_NC.shape[1], guided_NC.device)
        self._found[linear].add(guided_NC)
