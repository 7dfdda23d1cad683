"""A base with trainable factors on its linears, and the way back: a plain LoRA.

The factors are PEFT's `lora_A` and `lora_B`.  A form of training is a torch parametrization of
their weights, so that the forward pass stays PEFT's and baking is reading these weights.
"""

# Shape suffixes:  B = rows,  T = tokens,  R = atoms,  I = inputs and  O = outputs of a linear.

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize

from pruning.adapters.algebra import Bag, cat
from pruning.adapters.atoms import Key
from pruning.adapters.compression import linear_of
from pruning.adapters.train.starts import Start, Starts
from pruning.errors import InvalidInput
from pruning.text import IGNORED
from pruning.weights.tensors import block_of

Batch = tuple[Tensor, Tensor]  # token ids and labels, (B, T) each
_NAME = "default"  # of PEFT's adapter


@dataclass(frozen=True)
class Site:
    """What an initialisation may look at; the base's weights are as before when it is done."""

    model: Any
    ranks: Mapping[Key, int]  # of the linears that are to be trained
    scale: float  # alpha / rank
    batches: Sequence[Batch]  # of training rows
    seed: int
    first_update: float  # what a step of the optimizer moves a weight by at first

    def weight(self, key: Key) -> Tensor:
        """Of a linear, (O, I), float32."""
        found: Tensor = linear_of(self.model, key).weight.detach().float()
        return found

    @property
    def rank(self) -> int:
        """The highest."""
        return max(self.ranks.values())

    def gradients(self) -> dict[Key, Tensor]:
        """The mean gradient of each linear's weight over the batches, (O, I), float32."""
        weights = {key: linear_of(self.model, key).weight for key in self.ranks}
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        for weight in weights.values():
            weight.requires_grad_(True)
        tokens = sum(map(count, self.batches))
        for batch in self.batches:
            torch.autograd.backward(summed_loss(self.model, batch) / tokens)
        found = {}
        for key, weight in weights.items():
            found[key] = weight.grad.float()
            weight.grad = None
            weight.requires_grad_(False)
        return found


class Ranks(Protocol):
    """How many atoms each linear is trained with; what is not there is not trained.

    The ranks of its site are those of the recipe, all alike.
    """

    def __call__(self, site: Site, params: Any) -> dict[Key, int]: ...


class Init(Protocol):
    """With which factors a training begins."""

    def __call__(self, site: Site, params: Any) -> Starts: ...


@dataclass(frozen=True)
class Setting:
    """What forms and hooks know of the training that they are for."""

    seed: int
    num_steps: int


class Around:
    """What happens around the steps of a training; this one does nothing."""

    keeps_last = False  # whether the last weights count, not those with the lowest loss

    def before(self, step: int) -> None:
        """Just before the forward pass of a step, counted from 0."""

    def penalty(self) -> Tensor | None:
        """What to add to the loss of a step."""
        return None

    def after(self, rate: float) -> None:
        """After the optimizer has moved the weights at this learning rate."""

    @property
    def state(self) -> Mapping[str, Tensor]:
        """What a kill must not undo, changed in place."""
        return {}


@dataclass(frozen=True)
class Tuned:
    """A base with factors on its linears; `layers` are PEFT's, by linear."""

    model: Any
    layers: Mapping[Key, Any]
    starts: Starts

    @classmethod
    def of(cls, model: Any, starts: Starts) -> "Tuned":
        """Attach the factors that a training begins with, all of them trained, to a base."""
        from peft import LoraConfig, get_peft_model  # a second that registries do without

        modules = {key: module_of(key) for key in starts.linears}
        ranks = {modules[key]: len(start.a_RI) for key, start in starts.linears.items()}
        config = LoraConfig(
            r=max(ranks.values()),
            target_modules=list(ranks),
            rank_pattern=ranks,
            alpha_pattern={module: starts.scale * rank for module, rank in ranks.items()},
            init_lora_weights=False,
        )
        adapted = get_peft_model(model, config)
        layers = {key: adapted.get_submodule(f"base_model.model.{modules[key]}") for key in modules}
        for key, start in starts.linears.items():
            sides = side_a(layers[key]).weight, side_b(layers[key]).weight
            for weight, value in zip(sides, (start.a_RI, start.product_OR), strict=True):
                weight.data.copy_(value)
            if starts.is_part_of_base:
                layers[key].base_layer.weight.data -= starts.scale * start.delta.to(sides[0].device)
        return cls(adapted, layers, starts)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def bake(self) -> dict[Key, Bag]:
        """What is served on the base as it was: atoms that add nothing are left out."""
        bags: dict[Key, Bag] = {}
        for key, layer in self.layers.items():
            bag = self._bag(key, layer)
            adds_R = (bag.a_RI != 0).any(dim=1) & (bag.b_OR != 0).any(dim=0)
            if adds_R.any():
                bags[key] = bag.select(adds_R.nonzero().flatten())
        return bags

    def _bag(self, key: Key, layer: Any) -> Bag:
        scale, start = self.starts.scale, self.starts.linears[key]
        a_RI = side_a(layer).weight.detach().cpu()
        b_OR = side_b(layer).weight.detach().cpu()
        if not self.starts.is_part_of_base:
            return Bag(a_RI, scale * b_OR)
        if torch.equal(a_RI, start.a_RI):  # the same A: one bag is enough
            return Bag(a_RI, scale * (b_OR - start.product_OR))
        began = Bag(start.a_RI, scale * start.product_OR)
        return cat([Bag(a_RI, scale * b_OR), began], [1.0, -1.0])


class Form(Protocol):
    """Decides what of the factors is trained."""

    def __call__(self, tuned: Tuned, params: Any, setting: Setting) -> Around | None: ...


class Hook(Protocol):
    """Adds something to a training whose form has been attached."""

    def __call__(self, tuned: Tuned, params: Any, setting: Setting) -> Around: ...


def side_a(layer: Any) -> nn.Linear:
    """The module of PEFT's that holds A."""
    found: nn.Linear = layer.lora_A[_NAME]
    return found


def side_b(layer: Any) -> nn.Linear:
    """The module of PEFT's that holds B."""
    found: nn.Linear = layer.lora_B[_NAME]
    return found


def factor(side: nn.Linear) -> nn.Parameter:
    """The parameter behind a side, whatever parametrizes it."""
    found: nn.Parameter = dict(side.named_parameters(recurse=True))[
        "parametrizations.weight.original" if parametrize.is_parametrized(side) else "weight"
    ]
    return found


def trained_sides(tuned: Tuned, hook: str) -> dict[Key, tuple[nn.Parameter, nn.Parameter]]:
    """A and B of all linears; InvalidInput where the form does not train both."""
    sides = {
        key: (factor(side_a(layer)), factor(side_b(layer))) for key, layer in tuned.layers.items()
    }
    if not all(one.requires_grad for both in sides.values() for one in both):
        raise InvalidInput(
            "hooks", f"{hook} is for forms that train both factors, such as plain and gated"
        )
    return sides


def begin_of(tuned: Tuned, key: Key) -> Start:
    """What a linear begins with, on the device of its factors."""
    start, device = tuned.starts.linears[key], factor(side_a(tuned.layers[key])).device
    core_RR = None if start.core_RR is None else start.core_RR.to(device)
    return Start(start.a_RI.to(device), start.b_OR.to(device), core_RR)


def summed_loss(model: Any, batch: Batch) -> Tensor:
    """Negative log likelihood of the labelled tokens of a batch, in nats."""
    ids_BT, labels_BT = (tensor.to(model.device) for tensor in batch)
    targets_BT = labels_BT[:, 1:]
    wanted = (targets_BT != IGNORED).any(dim=0).nonzero().flatten()  # of the rest, no logits
    logits = model(input_ids=ids_BT, use_cache=False, logits_to_keep=wanted).logits
    targets = targets_BT[:, wanted].flatten()
    return cross_entropy(logits.flatten(0, 1), targets, ignore_index=IGNORED, reduction="sum")


def count(batch: Batch) -> int:
    """How many tokens of a batch have a label."""
    return int((batch[1][:, 1:] != IGNORED).sum())


def module_of(key: Key) -> str:
    """The name of a linear's module in its base."""
    layer, linear = key
    return f"model.layers.{layer}.{block_of(linear)}.{linear}"
