"""PQ index: how many of a unit's weights its own sparsity says are needed, times their size.

Diao et al., "Pruning Deep Neural Networks from a Sparsity Perspective", ICLR 2023,
https://arxiv.org/abs/2302.05601.  With I = 1 - d^(1/q - 1/p) · ‖w‖_p / ‖w‖_q of d weights, at
least m = d · (1 + η)^(-q/(q-p)) · (1 - I)^(pq/(q-p)) must stay (their theorem 2).  The paper sets
ratios with it and defines no score of a unit.  Ours takes w as all weights of the unit, the
paper's neuron-wise scope: "retained" is m, blind to the size of weights; "mass" is m times their
power mean ‖w‖_q / d^(1/q), for p = 1/2 and q = 1 simply ‖w‖_½ / d.
"""

# Shape suffixes:  U = units,  D = weights of a unit.

import torch
from torch import Tensor

from pruning.methods.criteria import PqParams
from pruning.registry import LayerScores, LayerView
from pruning.scoring import by_kind, by_unit
from pruning.units import Kind, members


def score(layer: LayerView, params: PqParams) -> LayerScores:
    """Weights that the bound keeps in each unit: their number, or their summed size."""
    return by_kind(layer, lambda kind: _kept(_weights(layer, kind), params))


def _weights(layer: LayerView, kind: Kind) -> Tensor:
    """The absolute values of all weights of each unit; (U, D)."""
    parts = []
    for member in members(layer.geometry, layer.index, kind):
        weight = layer.weights[member.linear].double().abs()
        rows = weight if member.axis == 0 else weight.T
        parts.append(by_unit(rows, member).flatten(1))
    return torch.cat(parts, dim=1)


def _kept(weights_UD: Tensor, params: PqParams) -> Tensor:
    p, q = params.p, params.q
    size_p_U = weights_UD.pow(p).mean(dim=1).pow(1 / p)  # power means: d^(-1/p) · ‖w‖_p
    size_q_U = weights_UD.pow(q).mean(dim=1).pow(1 / q)
    evenness_U = (size_p_U / size_q_U).nan_to_num(0)  # 1 - I
    shrink: float = (1 + params.eta) ** (-q / (q - p))
    retained_U = weights_UD.shape[1] * shrink * evenness_U.pow(p * q / (q - p))
    return retained_U if params.variant == "retained" else retained_U * size_q_U
