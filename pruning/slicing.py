"""Applies a plan: the kept rows and columns of every tensor, written as a smaller dense model."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruning.geometry import Geometry
from pruning.hidden import narrowed
from pruning.plan import Plan
from pruning.progress import Progress
from pruning.stats import Statistics
from pruning.units import READERS, Selection, cuts
from pruning.weights.checkpoint import Checkpoint
from pruning.weights.tensors import expected
from pruning.weights.writer import Entry, write

COMPANIONS = (  # what else a servable directory has, where the base has it
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)


def slice_base(
    checkpoint: Checkpoint,
    plan: Plan,
    config: Mapping[str, Any],
    statistics: Statistics,
    destination: Path,
    progress: Progress,
    energies: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the slim base that `config` (export.slim_config) describes; one tensor in memory.

    With `plan.bias_compensation` the mean contribution of what left, W[:, pruned] · mean[pruned],
    becomes a bias of o_proj and down_proj (FLAP, An et al., AAAI 2024,
    https://arxiv.org/abs/2312.11983).  As there, the means are those of the dense base, not of the
    slim layers before; removed blocks are not compensated, their readers being gone.

    Where channels of the hidden state leave, norms are rescaled, see hidden.py; by `energies`, of
    the inputs of norms, they make up for what their mean square misses.
    """
    slim = Geometry.from_config(config)
    cut = _Cut(checkpoint, plan, statistics, energies or {})
    entries = [
        Entry(name, cut.dtype(name), shape, partial(cut.tensor, name, shape))
        for name, shape in expected(slim)
    ]
    write_base(destination, entries, config, checkpoint.directory, progress)


def write_base(
    destination: Path,
    entries: Sequence[Entry],
    config: Mapping[str, Any],
    origin: Path,
    progress: Progress,
) -> None:
    """Write a servable directory: tensors, a config, and the companions that `origin` has."""
    destination.mkdir(parents=True, exist_ok=True)
    write(
        destination / "model.safetensors",
        entries,
        lambda fraction: progress(fraction, "writing tensors"),
    )
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (destination / "config.json").write_text(text, encoding="utf-8")
    for name in COMPANIONS:
        if (origin / name).is_file():
            shutil.copyfile(origin / name, destination / name)


@dataclass(frozen=True)
class _Cut:
    """Makes the tensors of the slim base, named as there, from those of the dense one."""

    checkpoint: Checkpoint
    plan: Plan
    statistics: Statistics
    energies: Mapping[str, Tensor]

    def dtype(self, name: str) -> torch.dtype:
        return self._stored_dtype(self._dense_name(name))

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        dense_name = self._dense_name(name)
        parts = dense_name.split(".")
        if len(parts) != 6 or not parts[4].endswith("_proj"):
            whole = self.checkpoint.tensor(dense_name)
            return narrowed(dense_name, whole, self.plan, self.checkpoint.geometry, self.energies)
        layer, linear, what = int(parts[2]), parts[4], parts[5]
        kept = cuts(self.checkpoint.geometry, layer, self.plan)[linear]
        if what == "bias":
            return self._bias(dense_name, layer, linear, kept)
        return reduce(_select, kept, self.checkpoint.tensor(dense_name))

    def _bias(self, name: str, layer: int, linear: str, kept: tuple[Selection, ...]) -> Tensor:
        dtype = self._stored_dtype(name)
        if name in self.checkpoint.infos:
            bias = self.checkpoint.tensor(name)
        else:
            _, info = self.checkpoint.infos[name.removesuffix("bias") + "weight"]
            bias = torch.zeros(info.shape[0], dtype=dtype)
        if self.plan.bias_compensation and linear in READERS.values():
            bias = (bias.double() + self._folded(name, layer, linear, kept[0])).to(dtype)
        return reduce(_select, (selection for selection in kept if selection.axis == 0), bias)

    def _folded(self, name: str, layer: int, linear: str, selection: Selection) -> Tensor:
        """W[:, pruned] · mean[pruned], in float64; (outputs,)."""
        weight = self.checkpoint.tensor(name.removesuffix("bias") + "weight")
        pruned = torch.ones(weight.shape[1], dtype=torch.bool)
        pruned[list(selection.indices)] = False
        mean = self.statistics.moments[layer, linear].mean_C
        return weight[:, pruned].double() @ mean[pruned]

    def _stored_dtype(self, name: str) -> torch.dtype:
        if name.endswith(".bias") and name not in self.checkpoint.infos:
            name = name.removesuffix("bias") + "weight"
        return self.checkpoint.dtype(name)

    def _dense_name(self, name: str) -> str:
        """Undo the renumbering of layers."""
        parts = name.split(".")
        if parts[1] != "layers":
            return name
        parts[2] = str(self.plan.kept_layers[int(parts[2])])
        return ".".join(parts)


def _select(tensor: Tensor, selection: Selection) -> Tensor:
    return tensor.index_select(selection.axis, torch.tensor(selection.indices))
