"""Coefficients of random factors: what is stored of an adapter is a seed and a few numbers.

Koohpayegani et al., "NOLA: Compressing LoRA using Linear Combination of Random Basis", ICLR 2024,
https://arxiv.org/abs/2310.02556, equation 2: A = A₀ + Σ α_i A_i and B = Σ β_i B_i, all random
factors uniform in ±1 / √bases, drawn by a seed.  As in the released code there is the fresh A₀ of
LoRA, so that B's coefficients have a gradient while all are zero.
"""

# Shape suffixes:  K = bases,  R = atoms,  I = inputs and  O = outputs of the linear.

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pruning.adapters.algebra import Bag
from pruning.adapters.atoms import Key
from pruning.adapters.merging import seed_of
from pruning.adapters.train.starts import kaiming
from pruning.adapters.train.tuned import Setting, Tuned, factor, side_a, side_b
from pruning.methods.training import NolaParams

KEPT = 1 << 21  # random numbers of a factor that are kept; of more, a base at a time is drawn

Shape = tuple[int, int]


def bases(seed: int, count: int, shape: Shape) -> Iterator[Tensor]:
    """The random factors of a seed, one after the other."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(count)


class _Combined(torch.autograd.Function):
    """Σ c_k G_k with the G_k drawn now, and drawn once more for the gradient of c."""

    @staticmethod
    def forward(ctx: Any, numbers_K: Tensor, seed: int, shape: Shape) -> Tensor:
        ctx.drawn = seed, len(numbers_K), shape
        total = numbers_K.new_zeros(shape)
        for number, base in zip(numbers_K, bases(*ctx.drawn), strict=True):
            total += number * base.to(total.device)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        found = [(gradient * base.to(gradient.device)).sum() for base in bases(*ctx.drawn)]
        return torch.stack(found), None, None


class Combination(nn.Module):
    """A factor and the combination that is added to it."""

    def __init__(self, seed: int, count: int, like: Tensor):
        super().__init__()
        self.numbers_K = nn.Parameter(like.new_zeros(count))
        self._seed, self._shape = seed, (like.shape[0], like.shape[1])
        self._kept = None
        if count * like.numel() <= KEPT:
            self._kept = torch.stack([*bases(seed, count, self._shape)]).to(like.device)

    def forward(self, factor: Tensor) -> Tensor:
        if self._kept is not None:
            kept: Tensor = torch.tensordot(self.numbers_K, self._kept, 1)
            return factor + kept
        apply: Any = _Combined.apply  # torch's stubs do not type it
        combined: Tensor = apply(self.numbers_K, self._seed, self._shape)
        return factor + combined


def attach(tuned: Tuned, params: NolaParams, setting: Setting) -> None:
    """Only the coefficients of both factors are trained, all zero at first."""
    for key, layer in tuned.layers.items():
        for name, side in (("a", side_a(layer)), ("b", side_b(layer))):
            seed = seed_of(setting.seed, key, name)
            weight = factor(side).requires_grad_(False)
            combination = Combination(seed, params.bases, weight)
            parametrize.register_parametrization(side, "weight", combination)


def write_compact(tuned: Tuned, seed: int, path: Path) -> None:
    """Write what an adapter of this form is made of: the seed, shapes and coefficients."""
    tensors, shapes = {}, {}
    for (layer, linear), module in tuned.layers.items():
        sides = {"a": side_a(module), "b": side_b(module)}
        shapes[f"{layer}.{linear}"] = [list(factor(side).shape) for side in sides.values()]
        for name, side in sides.items():
            combination: Any = side.parametrizations["weight"][0]  # type: ignore[index]
            tensors[f"{layer}.{linear}.{name}"] = combination.numbers_K.detach().cpu()
    told = {"seed": seed, "scale": tuned.starts.scale, "shapes": shapes}
    save_file(tensors, path, {"nola": json.dumps(told, sort_keys=True)})


def expand(path: Path) -> dict[Key, Bag]:
    """The plain LoRA of a compact file, the one that was baked."""
    with safe_open(path, framework="pt") as file:
        told = json.loads(file.metadata()["nola"])
        numbers = {name: file.get_tensor(name) for name in file.keys()}
    bags: dict[Key, Bag] = {}
    for place, (shape_a, shape_b) in told["shapes"].items():
        layer, _, linear = place.partition(".")
        key = int(layer), linear
        found = {}
        for name, shape in (("a", shape_a), ("b", shape_b)):
            zero = torch.zeros(shape)
            seed = seed_of(told["seed"], key, name)
            combination = Combination(seed, len(numbers[f"{place}.{name}"]), zero)
            combination.numbers_K.data = numbers[f"{place}.{name}"]
            found[name] = combination(zero).detach()
        generator = torch.Generator().manual_seed(seed_of(told["seed"], key))
        a_RI = kaiming(shape_a[0], shape_a[1], generator) + found["a"]
        bags[key] = Bag(a_RI, told["scale"] * found["b"])
    return bags
