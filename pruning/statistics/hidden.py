"""What calibration shows of the channels of the hidden state: how much each one matters.

Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation", NeurIPS
2024, https://arxiv.org/abs/2407.14679: activations behind every norm, by the mean of their absolute
values over the tokens of a sequence, the L2 norm over sequences, and the sum over norms.
"""

# Shape suffixes:  S = sequences,  T = tokens,  H = channels of the hidden state.

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pruning.progress import Progress
from pruning.statistics.absolute import AbsoluteMeans
from pruning.statistics.streaming import Stream
from pruning.weights.checkpoint import Checkpoint
from pruning.weights.tensors import FINAL_NORM

_IMPORTANCE = "importance"


@dataclass(frozen=True)
class HiddenChannels:
    """Importance (H,), and of the input h of each norm the mean of h² / mean(h²), (H,); float64."""

    importance_H: Tensor
    energies: Mapping[str, Tensor]  # by the names of the norms' weights

    def save(self, path: Path) -> None:
        save_file({_IMPORTANCE: self.importance_H, **self.energies}, path)

    @classmethod
    def load(cls, path: Path) -> "HiddenChannels":
        tensors = load_file(path)
        return cls(tensors.pop(_IMPORTANCE), tensors)


def watch(checkpoint: Checkpoint, ids_ST: Tensor, work: Path, progress: Progress) -> HiddenChannels:
    """Run sequences (S, T) through the base once; `work` has room for two layers' states."""
    energies: dict[str, Tensor] = {}
    means: dict[str, AbsoluteMeans] = {}
    hooks: list[Any] = []

    def see(name: str, norm: nn.Module, inputs: tuple[Tensor], output_STH: Tensor) -> None:
        square_STH = inputs[0].detach().double().square()
        energy_H = (square_STH / square_STH.mean(dim=-1, keepdim=True)).sum(dim=(0, 1)).cpu()
        energies[name] = energies.get(name, 0) + energy_H / ids_ST.numel()
        means[name] = AbsoluteMeans.updated(means.get(name), output_STH)

    def see_last(layer: nn.Module, inputs: Any, output_STH: Tensor) -> None:
        see(FINAL_NORM, stream.norm, (output_STH,), stream.norm(output_STH))

    def prepare(index: int, layer: nn.Module) -> None:
        while hooks:
            hooks.pop().remove()
        for block in checkpoint.geometry.architecture.blocks:
            for norm in block.norms:
                hook = partial(see, f"model.layers.{index}.{norm}.weight")
                hooks.append(layer.get_submodule(norm).register_forward_hook(hook))
        if index == stream.num_layers - 1:
            hooks.append(layer.register_forward_hook(see_last))

    with TemporaryDirectory(dir=work) as states:
        stream = Stream(checkpoint, ids_ST, Path(states))
        stream.forward(prepare, keep_inputs=False, progress=progress)
    importance_H = torch.stack([m.squares_C.sqrt() for m in means.values()]).sum(dim=0)
    return HiddenChannels(importance_H, energies)
