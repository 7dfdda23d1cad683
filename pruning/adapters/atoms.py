"""A LoRA adapter as atoms: per linear the pair (a, b), read from and written to PEFT directories.

Atom i of a linear is row a[i] and column b[:, i]; the linear adds scale · b @ (a @ x), where the
scale follows from alpha and rank as the adapter's config says.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from pruning.adapters.peft_config import CONFIG, rank_of, read_config
from pruning.adapters.peft_format import WEIGHTS
from pruning.errors import InvalidInput
from pruning.geometry import Geometry
from pruning.weights.tensors import block_of

Key = tuple[int, str]  # layer, linear
_TENSOR = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.\w+\.(\w+)\.lora_([AB])\.weight")


@dataclass(frozen=True)
class Atoms:
    """The atoms of one linear: a (rank, inputs), b (outputs, rank)."""

    a: Tensor
    b: Tensor
    alpha: float


@dataclass(frozen=True)
class Adapter:
    """The atoms of all linears that have any, and the config they came with."""

    config: Mapping[str, Any]
    atoms: Mapping[Key, Atoms]


def read(directory: Path, field: str) -> Adapter:
    """Read a directory that `peft_format.read_adapter` has found good."""
    config = read_config(directory / CONFIG, field)
    sides: dict[Key, dict[str, Tensor]] = {}
    for name, tensor in load_file(directory / WEIGHTS).items():
        key, side = key_of(name, field)
        sides.setdefault(key, {})[side] = tensor
    return Adapter(
        config,
        {
            key: Atoms(side["A"], side["B"], alpha_of(config, key))
            for key, side in sorted(sides.items())
        },
    )


def write(adapter: Adapter, directory: Path, geometry: Geometry, base_name: str) -> None:
    """Write a PEFT directory for a base of this geometry, the same bytes for the same adapter.

    Ranks, alphas and targets are written as they are in `atoms`, whatever patterns, layer lists
    or expressions had spelled them before.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for key, atoms in adapter.atoms.items():
        tensors[f"base_model.model.{_module(key)}.lora_A.weight"] = atoms.a.contiguous()
        tensors[f"base_model.model.{_module(key)}.lora_B.weight"] = atoms.b.contiguous()
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    config = dict(adapter.config) | _patterns(adapter) | _targets(adapter, geometry)
    config["base_model_name_or_path"] = base_name
    (directory / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _patterns(adapter: Adapter) -> dict[str, Any]:
    rank, alpha = adapter.config["r"], adapter.config["lora_alpha"]
    ranks = {_module(key): len(atoms.a) for key, atoms in adapter.atoms.items()}
    alphas = {_module(key): atoms.alpha for key, atoms in adapter.atoms.items()}
    return {
        "rank_pattern": {module: r for module, r in ranks.items() if r != rank},
        "alpha_pattern": {module: a for module, a in alphas.items() if a != alpha},
    }


def _targets(adapter: Adapter, geometry: Geometry) -> dict[str, Any]:
    """Which modules PEFT shall touch: linears by name, of some layers, or one by one."""
    present = set(adapter.atoms)
    adapted = {linear for _, linear in present}
    linears = [linear for linear in geometry.architecture.linears if linear in adapted]
    layers = sorted({layer for layer, _ in present})

    def possible(chosen: list[int] | range) -> set[Key]:
        return {
            (layer, linear)
            for layer in chosen
            for linear in linears
            if geometry.linear_shape(layer, linear)
        }

    targets: dict[str, Any] = {
        "target_modules": linears,
        "layers_to_transform": None,
        "layers_pattern": None,
        "exclude_modules": None,
    }
    if present == possible(range(len(geometry.layers))):
        return targets
    if present == possible(layers):
        return targets | {"layers_to_transform": layers}
    return targets | {"target_modules": [_module(key) for key in adapter.atoms]}


def _module(key: Key) -> str:
    layer, linear = key
    return f"model.layers.{layer}.{block_of(linear)}.{linear}"


def key_of(tensor: str, field: str) -> tuple[Key, str]:
    """The linear that a tensor of a file belongs to, and the side, "A" or "B"."""
    match = _TENSOR.fullmatch(tensor)
    if match is None:
        raise InvalidInput(field, f"tensor {tensor} is no part of a plain LoRA")
    return (int(match[1]), match[2]), match[3]


def alpha_of(config: Mapping[str, Any], key: Key) -> float:
    """As `rank_of`, for alphas; integers stay integers, as PEFT writes them."""
    pattern = config.get("alpha_pattern") or {}
    as_ranks = {"rank_pattern": dict(zip(pattern, range(len(pattern)), strict=True)), "r": -1}
    found = rank_of(as_ranks, _module(key))
    alpha: float = config["lora_alpha"] if found < 0 else list(pattern.values())[found]
    return alpha
