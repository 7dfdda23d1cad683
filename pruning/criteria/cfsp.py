"""CFSP's fine score: a unit's share of the weights, times the norm of its activations.

Wang et al., "CFSP: An Efficient Structured Pruning Framework for LLMs with Coarse-to-Fine
Activation Information", COLING 2025, https://arxiv.org/abs/2409.13199.  For channel j with input
norm n_j: F_j = n_j^c · mean over the hidden size of D_ij·n_j^b + U_ji + G_ji, where D, U and G are
|down|, |up| and |gate|, each normalised.

The released code divides each matrix by the sums over the hidden size, over which the mean is then
taken: what remains is 3/H · n_j^c, in which no weight occurs (variant "released").  Variant "fixed"
divides by the sums over the channels, so that a weight counts by its share among the channels.
The paper prunes the FFN only; KV groups are scored through o_proj alone, as down_proj is (ours).
"""

# Shape suffixes:  H = hidden size,  C = channels,  P = parts of a fused linear.

import torch
from torch import Tensor

from pruning.methods.criteria import CfspParams
from pruning.registry import LayerScores, LayerView
from pruning.scoring import by_kind, by_unit, input_rms
from pruning.units import Kind, members


def score(layer: LayerView, params: CfspParams) -> LayerScores:
    """Relative activation of each unit, summed over its channels."""
    return by_kind(layer, lambda kind: _relative(layer, kind, params))


def _relative(layer: LayerView, kind: Kind, params: CfspParams) -> Tensor:
    *writers, member = members(layer.geometry, layer.index, kind)
    norm_C = input_rms(layer, member.linear)
    read_HC = layer.weights[member.linear].double().abs() * norm_C**params.b
    axis = 1 if params.variant == "fixed" else 0
    shares = [_share(read_HC, axis).mean(dim=0)]
    for writer in writers if kind == "ffn_channel" else ():
        parts_CPH = by_unit(layer.weights[writer.linear].abs(), writer)
        shares += [_share(part_CH.T, axis).mean(dim=0) for part_CH in parts_CPH.unbind(dim=1)]
    return by_unit(torch.stack(shares).sum(dim=0) * norm_C**params.c, member).sum(dim=1)


def _share(matrix_HC: Tensor, axis: int) -> Tensor:
    return (matrix_HC / matrix_HC.sum(dim=axis, keepdim=True)).nan_to_num(0)
