"""Removes groups of a traced model in place: smaller tensors, and modules that know their width."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruning.tracing.groups import Group, Place

_WIDTHS: dict[type[nn.Module], tuple[str, ...]] = {  # attributes that tell the axes of a weight
    nn.Linear: ("out_features", "in_features"),
    nn.Conv2d: ("out_channels", "in_channels"),
    nn.BatchNorm2d: ("num_features",),
    nn.Embedding: ("num_embeddings", "embedding_dim"),
}


def magnitudes(model: nn.Module, groups: Sequence[Group]) -> list[float]:
    """The L2 norm of all weights of each group, of matrices and filters alone."""
    weights = {name: p.detach().double() for name, p in model.named_parameters() if p.dim() > 1}
    return [
        sum(
            float(weights[name].index_select(axis, torch.tensor(channels)).square().sum())
            for (name, axis), channels in group.channels.items()
            if name in weights
        )
        ** 0.5
        for group in groups
    ]


def remove(model: nn.Module, groups: Sequence[Group]) -> None:
    """Take the channels of `groups` out of every parameter and buffer.

    Raises ValueError when an axis would lose all of its channels.
    """
    leaving: dict[Place, set[int]] = defaultdict(set)
    for group in groups:
        for place, channels in group.channels.items():
            leaving[place].update(channels)
    narrowed: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # tied tensors stay tied
    for (name, axis), gone in leaving.items():
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        stored: Tensor = getattr(module, attribute)
        key = id(stored), axis
        if key not in narrowed:
            narrowed[key] = stored, _narrow(name, stored, axis, gone)
        narrow = narrowed[key][1]
        setattr(module, attribute, narrow)
        if attribute == "weight":
            _tell(module, axis, narrow.shape[axis])


def _narrow(name: str, stored: Tensor, axis: int, leaving: set[int]) -> Tensor:
    kept = [channel for channel in range(stored.shape[axis]) if channel not in leaving]
    if not kept:
        raise ValueError(f"{name} would lose all of its {stored.shape[axis]} channels")
    narrow = stored.detach().index_select(axis, torch.tensor(kept, device=stored.device))
    if isinstance(stored, nn.Parameter):
        return nn.Parameter(narrow, requires_grad=stored.requires_grad)
    return narrow


def _tell(module: Any, axis: int, width: int) -> None:
    if isinstance(module, nn.LayerNorm):
        module.normalized_shape = (width,)
        return
    names = _WIDTHS.get(type(module), ())
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        module.groups = module.in_channels = module.out_channels = width  # depthwise
    elif axis < len(names):
        setattr(module, names[axis], width)
