"""With which factors a training begins, for every linear: what an initialisation makes."""

# Shape suffixes:  R = atoms,  I = inputs and  O = outputs of the linear.

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pruning.adapters.atoms import Key

_FILE = "starts.safetensors"


@dataclass(frozen=True)
class Start:
    """Of one linear, which then adds scale · B · core · A; float32."""

    a_RI: Tensor
    b_OR: Tensor
    core_RR: Tensor | None = None  # the identity where there is none

    @property
    def product_OR(self) -> Tensor:
        """B · core."""
        return self.b_OR if self.core_RR is None else self.b_OR @ self.core_RR

    @property
    def delta(self) -> Tensor:
        """B · core · A, (outputs, inputs), without the scale."""
        return self.product_OR @ self.a_RI


@dataclass(frozen=True)
class Starts:
    """Of all linears that are trained; what is not there gained no rank.

    `scale` is alpha / rank for each of them.  Where `is_part_of_base`, the base that trains has
    W - scale · B · core · A, so that the first step begins at the base itself.
    """

    linears: Mapping[Key, Start]
    scale: float
    is_part_of_base: bool = False

    def save(self, folder: Path) -> None:
        """Save all of it, whole or not at all."""
        tensors: dict[str, Tensor] = {}
        for (layer, linear), start in self.linears.items():
            tensors[f"{layer}.{linear}.a"] = start.a_RI.contiguous()
            tensors[f"{layer}.{linear}.b"] = start.b_OR.contiguous()
            if start.core_RR is not None:
                tensors[f"{layer}.{linear}.core"] = start.core_RR.contiguous()
        told = json.dumps({"scale": self.scale, "is_part_of_base": self.is_part_of_base})
        save_file(tensors, folder / f"{_FILE}.draft", {"starts": told})
        os.replace(folder / f"{_FILE}.draft", folder / _FILE)

    @classmethod
    def load(cls, folder: Path) -> "Starts | None":
        """What was saved in the folder, if anything was."""
        if not (folder / _FILE).exists():
            return None
        with safe_open(folder / _FILE, framework="pt") as file:
            told = json.loads(file.metadata()["starts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        linears: dict[Key, Start] = {}
        for place in sorted({name.rpartition(".")[0] for name in tensors}):
            layer, linear = place.split(".")
            core_RR = tensors.get(f"{place}.core")
            linears[int(layer), linear] = Start(
                tensors[f"{place}.a"], tensors[f"{place}.b"], core_RR
            )
        return cls(dict(sorted(linears.items())), told["scale"], told["is_part_of_base"])


def kaiming(rank: int, inputs: int, generator: torch.Generator) -> Tensor:
    """The factor A of a fresh LoRA, uniform in ±1 / √inputs; (R, I)."""
    unit_RI = 2 * torch.rand(rank, inputs, generator=generator) - 1
    return unit_RI / math.sqrt(inputs)
