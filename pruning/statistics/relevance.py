"""Layer-wise relevance propagation (LRP) to the activations of the units.

Bach et al., PLoS ONE 2015, https://doi.org/10.1371/journal.pone.0130140, with the rules for
transformers of Achtibat et al., "AttnLRP", ICML 2024, https://arxiv.org/abs/2402.05602.  Relevance
is activation times gradient, the gradient taken on a graph with these rules:
- RMSNorm: the root mean square is a constant;
- SiLU, y = x · σ(x): σ(x) is a constant (identity rule);
- a product (gate · up, attention · value, query · key) gives each factor half of its relevance,
  which for query and key is a quarter, behind the half of the attention weights;
- linear layers and softmax: plain gradient times input.
The values are those of the plain graph; only gradients differ.  What is explained is the logit of
the true next token.
"""

# Shape suffixes:  S = sequences,  T = tokens,  N = tokens of a chunk,  C = channels,
#                  V = vocabulary.

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from pruning.architectures import ARCHITECTURES
from pruning.architectures.layout import Part, Writer
from pruning.units import BLOCKS, KINDS, READERS

Key = tuple[int, str]  # layer, linear
_FACTORS: Mapping[Part, float] = {"query": 0.25, "key": 0.25, "value": 0.5, "gate": 1, "up": 0.5}
_WRITERS = {
    f"{block.name}.{writer.name}": (block, writer)
    for architecture in ARCHITECTURES.values()
    for block in architecture.blocks
    for writer in block.writers
}


@dataclass(frozen=True)
class Relevance:
    """Target tokens, and |relevance| of each channel summed over all tokens, in float64."""

    targets: int
    total_C: Tensor

    def merge(self, other: Self) -> Self:
        """Of both sets of sequences together."""
        return type(self)(self.targets + other.targets, self.total_C + other.total_C)


def target_logit(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """The logits of the true next tokens, summed."""
    return logits_NV.gather(1, targets_N.unsqueeze(1)).sum()


@contextmanager
def rules(*modules: nn.Module) -> Iterator[None]:
    """Within this block, gradients that pass decoder layers or norms follow the rules."""
    hooks = []
    for root in modules:
        for name, module in root.named_modules():
            if rule := _rule(root, name, module):
                hooks.append(module.register_forward_hook(rule))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class RelevanceWalk:
    """Adds up |activation x gradient| at the inputs of a layer's readers as gradients flow."""

    def __init__(self, num_targets: int):
        self.num_targets = num_targets
        self.found: dict[Key, Relevance] = {}
        self._hooks: list[Any] = []
        self._sums: dict[str, Tensor] = {}

    def prepare(self, index: int, layer: nn.Module) -> None:
        for kind in KINDS:
            linear = READERS[kind]
            module = layer.get_submodule(f"{BLOCKS[kind]}.{linear}")
            self._hooks.append(module.register_forward_pre_hook(partial(self._watch, linear)))

    def finish(self, index: int, layer: nn.Module) -> None:
        while self._hooks:
            self._hooks.pop().remove()
        for linear, total_C in self._sums.items():
            # the walk's objective is a mean over targets
            self.found[index, linear] = Relevance(self.num_targets, total_C * self.num_targets)
        self._sums.clear()

    def _watch(self, linear: str, module: nn.Module, inputs: tuple[Tensor]) -> None:
        (inputs_STC,) = inputs
        add = partial(self._add, linear, inputs_STC.detach())
        inputs_STC.register_hook(add)  # type: ignore[no-untyped-call]

    def _add(self, linear: str, inputs_STC: Tensor, gradient_STC: Tensor) -> None:
        relevance_C = (inputs_STC * gradient_STC).abs().sum(dim=(0, 1), dtype=torch.float64)
        self._sums[linear] = self._sums.get(linear, 0) + relevance_C.cpu()


_Hook = Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]


def _rule(root: nn.Module, name: str, module: nn.Module) -> _Hook | None:
    parent, _, own = name.rpartition(".")
    place = f"{parent.rpartition('.')[2]}.{own}"
    if place in _WRITERS:
        block, writer = _WRITERS[place]
        reader: Any = root.get_submodule(f"{parent}.{block.reader}")
        return partial(_scaled, _factors(writer, module, reader.in_features))
    if own in ("act_fn", "activation_fn"):
        return _halved_activation
    return _constant_root if type(module).__name__.endswith("Norm") else None


def _factors(writer: Writer, module: Any, first: int) -> Tensor | float:
    """Of each output; the first part of a fused linear is as wide as its reader, others alike."""
    factors = [_FACTORS[part] for part in writer.parts]
    if len(factors) == 1:
        return factors[0]
    others = (module.out_features - first) // (len(factors) - 1)
    rows = torch.tensor([first, *[others] * (len(factors) - 1)], device=module.weight.device)
    return torch.tensor(factors, device=rows.device).repeat_interleave(rows)


def _scaled(
    factor: Tensor | float, module: nn.Module, inputs: tuple[Tensor], output: Tensor
) -> Tensor:
    return _with_gradient(output, output, factor)


def _halved_activation(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    (x,) = inputs
    ratio = torch.where(x == 0, 0.5, output / x)  # σ(x), also of GELU's kin
    return _with_gradient(output, x, ratio.detach() / 2)


def _constant_root(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    (x,) = inputs
    slope = torch.where(x == 0, 0.0, output / x)  # root and weight, however the norm combines them
    return _with_gradient(output, x, slope.detach())


def _with_gradient(value: Tensor, source: Tensor, slope: Tensor | float) -> Tensor:
    """`value`, whose gradient with respect to `source` is `slope`."""
    return value.detach() + (source - source.detach()) * slope
