"""A model directory read tensor by tensor: config.json and safetensors, one file or many."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from pruning.errors import InvalidInput
from pruning.geometry import SLIM_PREFIX, Geometry
from pruning.weights.header import TensorInfo, read_header
from pruning.weights.tensors import EMBEDDING, HEAD
from pruning.weights.writer import DTYPES


class Checkpoint:
    """A dense base on disk; nothing but the tensors asked for is ever in memory."""

    def __init__(self, directory: Path):
        """Raises InvalidInput for a base that cannot be read or pruned."""
        self.directory = directory
        self.config = read_config(directory)
        self.geometry = Geometry.from_config(self.config)

    @cached_property
    def shards(self) -> tuple[Path, ...]:
        """The weight files."""
        index = self.directory / "model.safetensors.index.json"
        if index.is_file():
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            return tuple(self.directory / name for name in sorted(names))
        single = self.directory / "model.safetensors"
        if not single.is_file():
            raise InvalidInput("base", f"{self.directory} has no model.safetensors")
        return (single,)

    @cached_property
    def infos(self) -> Mapping[str, tuple[Path, TensorInfo]]:
        """Tensor name → its file, and what is declared of it there."""
        return {
            name: (shard, info)
            for shard in self.shards
            for name, info in read_header(shard, "base").items()
        }

    def dtype(self, name: str) -> torch.dtype:
        """The dtype that a tensor is stored in."""
        return DTYPES[self._find(name)[1].dtype]

    def tensor(self, name: str) -> Tensor:
        """One tensor as it is stored."""
        with safe_open(self._find(name)[0], framework="pt") as file:
            stored: Tensor = file.get_tensor(name)
            return stored

    def _find(self, name: str) -> tuple[Path, TensorInfo]:
        if name not in self.infos:
            raise InvalidInput("base", f"the checkpoint lacks {name}")
        return self.infos[name]

    def layer(self, index: int) -> dict[str, Tensor]:
        """The tensors of a decoder layer, named as in the layer (self_attn.q_proj.weight, …)."""
        prefix = f"model.layers.{index}."
        names = [n for n in self.infos if n.startswith(prefix) and not n.endswith("inv_freq")]
        return {name.removeprefix(prefix): self.tensor(name) for name in names}

    def head(self) -> Tensor:
        """The output head, (vocabulary, hidden): the embedding itself when they are tied."""
        return self.tensor(EMBEDDING if self.geometry.tied else HEAD)

    def embedded(self, ids_ST: Tensor) -> Tensor:
        """What the first layer is given, float32; (S, T, hidden)."""
        rows_STH = self.tensor(EMBEDDING)[ids_ST].float()
        scaled = self.geometry.architecture.scaled_embedding
        return rows_STH * self.geometry.hidden_size**0.5 if scaled else rows_STH

    @property
    def weight_bytes(self) -> int:
        """Size of all weight files."""
        return sum(shard.stat().st_size for shard in self.shards)


def read_config(directory: Path) -> dict[str, Any]:
    """The config.json of a base that may be pruned.

    Raises InvalidInput when it is missing, slim already, quantized, or mixes kinds of attention.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise InvalidInput("base", f"{directory} has no config.json")
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if str(config.get("model_type")).startswith(SLIM_PREFIX):
        raise InvalidInput("base", "the base is slim already; prune its dense parent")
    if config.get("quantization_config"):
        raise InvalidInput("base", "the base is quantized; give the one in full precision")
    architecture = Geometry.from_config(config).architecture
    if len(set(config.get("layer_types") or ())) > 1 and not architecture.mixed_windows:
        raise InvalidInput("base", "layers with and without a sliding window cannot be mixed")
    return config
