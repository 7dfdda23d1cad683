"""Several adapters on one base, in transformers: the exact sum, one by turns, and a cached sum.

This is the reference of what a cached composition means; serving adds the exact sum in its kernels.
"""

# Shape suffixes:  S = sequences,  T = tokens,  I = inputs and  O = outputs of a linear.

from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pruning.adapters.algebra import Bags
from pruning.adapters.atoms import Key
from pruning.adapters.compression import linear_of


class Sum(Protocol):
    """What adapters add to a linear's outputs; `step` is 0 for a prompt, then counts tokens."""

    step: int

    def keys(self) -> set[Key]: ...

    def __call__(self, key: Key, inputs_STI: Tensor) -> Tensor | float: ...


class Exact:
    """Σ wᵢ Bᵢ Aᵢ x."""

    def __init__(self, parts: Sequence[Bags], weights: Sequence[float]) -> None:
        self.parts, self.weights = tuple(parts), tuple(weights)
        self.step = 0

    def keys(self) -> set[Key]:
        """The linears that any part changes."""
        return {key for part in self.parts for key in part}

    def __call__(self, key: Key, inputs_STI: Tensor) -> Tensor | float:
        return sum(self.one(i, key, inputs_STI) for i in range(len(self.parts)))

    def one(self, index: int, key: Key, inputs_STI: Tensor) -> Tensor | float:
        """What a single part adds, its weight included."""
        if (bag := self.parts[index].get(key)) is None:
            return 0.0
        return self.weights[index] * (inputs_STI @ bag.a_RI.T @ bag.b_OR.T)


class Switch(Exact):
    """One part at a time, by turns, after the prompt (LoRA Switch).

    Zhong et al., "Multi-LoRA Composition for Image Generation", TMLR 2024,
    https://arxiv.org/abs/2402.16843.  `whole` gives it the weight of all parts, else its own.
    """

    def __init__(
        self, parts: Sequence[Bags], weights: Sequence[float], whole: bool = False
    ) -> None:
        super().__init__(parts, weights)
        self._whole = whole

    def __call__(self, key: Key, inputs_STI: Tensor) -> Tensor | float:
        if self.step == 0:
            return super().__call__(key, inputs_STI)
        index = self.step % len(self.parts)
        share = sum(self.weights) / self.weights[index] if self._whole else 1.0
        return share * self.one(index, key, inputs_STI)


@contextmanager
def adapted(
    model: Any, added: Sum, inputs: MutableMapping[Key, Tensor] | None = None
) -> Iterator[None]:
    """Let a base in memory answer with a sum of adapters; `inputs` keeps what linears are given."""

    def hook(key: Key, module: nn.Module, given: tuple[Tensor], output_STO: Tensor) -> Tensor:
        if inputs is not None:
            inputs[key] = given[0].detach()
        return output_STO + added(key, given[0])

    hooks = [
        linear_of(model, key).register_forward_hook(partial(hook, key)) for key in added.keys()
    ]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


@torch.no_grad()
def decoded(model: Any, added: Sum, ids_ST: Tensor, prompt: int) -> Tensor:
    """Log probabilities of every token after the prompt, token by token with a KV cache.

    The tokens themselves are given; (S, tokens after the prompt, vocabulary).
    """
    found = []
    with adapted(model, added):
        added.step = 0
        output = model(ids_ST[:, :prompt], use_cache=True)
        for position in range(prompt, ids_ST.shape[1]):
            found.append(output.logits[:, -1].log_softmax(dim=-1))
            added.step += 1
            ids_S1 = ids_ST[:, position : position + 1]
            output = model(ids_S1, past_key_values=output.past_key_values, use_cache=True)
    return torch.stack(found, dim=1)
