"""More rank for layers that turn the hidden states further, as CFSP recovers what it pruned.

Wang et al., "CFSP: An Efficient Structured Pruning Framework for LLMs with Coarse-to-Fine
Activation Information", COLING 2025, https://arxiv.org/abs/2409.13199: the rank of a layer is
proportional to its importance, the mean angle between what enters and what leaves it; here on the
completions of training rows.  All layers together have as much rank as they would alike.
"""

# Shape suffixes:  B = rows,  T = tokens,  H = hidden.

import itertools
from typing import Any

import torch
from torch import Tensor

from pruning.adapters.atoms import Key
from pruning.adapters.train.tuned import Site
from pruning.methods.training import CfspRanksParams
from pruning.statistics.influence import Influence
from pruning.text import IGNORED


def share(site: Site, params: CfspRanksParams) -> dict[Key, int]:
    """A forward pass over the rows; every layer keeps a rank of one at least."""
    layers = sorted({layer for layer, _ in site.ranks})
    angles = importance(site)
    budget = sum(max(rank for key, rank in site.ranks.items() if key[0] == one) for one in layers)
    ranks = dict(zip(layers, portions([angles[one] for one in layers], budget), strict=True))
    return {key: ranks[key[0]] for key in site.ranks}


@torch.no_grad()
def importance(site: Site) -> list[float]:
    """By how much each layer of the base turns the states of completion tokens, in units of π."""
    seen: list[Influence | None] = [None] * len(site.model.model.layers)
    for ids_BT, labels_BT in site.batches:
        states = _states(site.model, ids_BT)
        is_learnt_BT = (labels_BT != IGNORED).to(states[0].device)
        for layer, (before_BTH, after_BTH) in enumerate(itertools.pairwise(states)):
            seen[layer] = Influence.updated(
                seen[layer], before_BTH[is_learnt_BT], after_BTH[is_learnt_BT]
            )
    return [one.mean_angle if one else 0.0 for one in seen]


def portions(weights: list[float], total: int) -> list[int]:
    """Whole parts of a total in proportion to weights, one at least; what is left by remainder."""
    weights = weights if any(weights) else [1.0] * len(weights)
    spare = total - len(weights)
    exact = [spare * weight / sum(weights) for weight in weights]
    parts = [int(one) for one in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: parts[i] - exact[i])
    for i in by_remainder[: spare - sum(parts)]:
        parts[i] += 1
    return [1 + part for part in parts]


def _states(model: Any, ids_BT: Tensor) -> list[Tensor]:
    """What enters each layer, and what leaves the last one; (B, T, H) each."""
    states: list[Tensor] = []

    def entering(module: Any, inputs: tuple[Tensor, ...]) -> None:
        states.append(inputs[0])

    modules = [*model.model.layers, model.model.norm]
    handles = [module.register_forward_pre_hook(entering) for module in modules]
    try:
        model(input_ids=ids_BT.to(model.device), use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    return states
