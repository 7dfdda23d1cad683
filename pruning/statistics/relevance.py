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

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from pruning.units import BLOCKS, KINDS, READERS

Key = tuple[int, str]  # layer, linear
_FACTORS = {
    "self_attn.q_proj": 0.25,
    "self_attn.k_proj": 0.25,
    "self_attn.v_proj": 0.5,
    "mlp.up_proj": 0.5,
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
            if rule := _rule(name, module):
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


def _rule(name: str, module: nn.Module) -> _Hook | None:
    place = ".".join(name.split(".")[-2:])
    if place in _FACTORS:
        return partial(_scaled, _FACTORS[place])
    if name.endswith("act_fn"):
        return _halved_activation
    return _constant_root if hasattr(module, "variance_epsilon") else None


def _scaled(factor: float, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return _with_gradient(output, output, factor)


def _halved_activation(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    (x,) = inputs
    ratio = torch.where(x == 0, 0.5, output / x)  # σ(x), also of GELU's kin
    return _with_gradient(output, x, ratio.detach() / 2)


def _constant_root(module: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    (x,) = inputs
    root = (x.detach().square().mean(dim=-1, keepdim=True) + module.variance_epsilon).rsqrt()
    return _with_gradient(output, x, root * module.weight.detach())


def _with_gradient(value: Tensor, source: Tensor, slope: Tensor | float) -> Tensor:
    """`value`, whose gradient with respect to `source` is `slope`."""
    return value.detach() + (source - source.detach()) * slope
