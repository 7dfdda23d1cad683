"""A narrower hidden state: the same channels leave embedding, norms, linears and output head.

A norm divides by the root mean square over the channels that it has.  Over the K of H that stay it
is given sqrt(H/K) times its weight and H/K times its epsilon, and so computes what it would over
all H with zeros where channels left.  What left is not zero in the dense base, though: its norms
divide by more.  By the share of the energy that stays, measured on the calibration text before
each norm, its weight is scaled once more, so that on average it divides as in the dense base.
PAT (Liu et al., AAAI 2025, https://arxiv.org/abs/2408.14721) folds sqrt(H/K) into norms likewise
in its code; the share is ours.
"""

# Shape suffixes:  H = channels of the hidden state.

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pruning.geometry import Geometry
from pruning.plan import Plan
from pruning.weights.tensors import EMBEDDING, FINAL_NORM


def best(importance_H: Tensor, count: int) -> tuple[int, ...]:
    """The `count` most important channels, ascending; on a tie the later one stays."""
    return tuple(sorted(importance_H.argsort(stable=True)[-count:].tolist()))


def narrowed(
    name: str, whole: Tensor, plan: Plan, dense: Geometry, energies: Mapping[str, Tensor]
) -> Tensor:
    """The slim base's tensor of this name, which is no linear's, from that of the dense base.

    `energies` are those of the inputs of norms, by the norms' names, (H,); a norm that has none is
    taken to see zeros in the channels that leave.
    """
    of_a_head = name.count(".") == 5  # model.layers.0.self_attn.q_norm.weight
    if plan.hidden_channels is None or of_a_head:
        return whole
    kept_H = torch.tensor(plan.hidden_channels)
    kept, wider = whole.index_select(-1, kept_H), dense.hidden_size / len(kept_H)
    # servers scale by the root of the narrower size, and read a tied output head unscaled
    scale = math.sqrt(wider) if dense.architecture.scaled_embedding else 1.0
    if whole.dim() == 2:
        return kept * scale if name == EMBEDDING and scale != 1 else kept
    gain = math.sqrt(wider * _share(energies.get(name), kept_H))
    if name == FINAL_NORM and dense.tied:
        gain /= scale
    offset = dense.architecture.norm_offset
    return (gain * (offset + kept.double()) - offset).to(whole.dtype)


def widened(states: Tensor, plan: Plan, dense: Geometry) -> Tensor:
    """Hidden states of the slim base as those of the dense one, (…, H): zeros for what left."""
    if plan.hidden_channels is None:
        return states
    wide = states.new_zeros(*states.shape[:-1], dense.hidden_size)
    return wide.index_copy(-1, torch.tensor(plan.hidden_channels), states)


def _share(energy_H: Tensor | None, kept_H: Tensor) -> float:
    """What part of the energy lies in the channels that stay."""
    return 1.0 if energy_H is None else float(energy_H[kept_H].sum() / energy_H.sum())
