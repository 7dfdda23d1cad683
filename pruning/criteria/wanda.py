"""Wanda for whole units: |weight| times input norm, summed over the weights that read a unit.

Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024,
https://arxiv.org/abs/2306.11695: |W_ij| · ‖X_j‖₂.  Summed over the columns of o_proj and down_proj
it is the baseline "Wanda-sp" of An et al., AAAI 2024, https://arxiv.org/abs/2312.11983.  The norm
is taken per token (root mean square), so that more text does not change the scores.
"""

from torch import Tensor

from pruning.methods.entry import Params
from pruning.registry import LayerScores, LayerView
from pruning.scoring import by_kind, by_unit, column_sums, input_rms, reader
from pruning.units import Kind


def score(layer: LayerView, params: Params) -> LayerScores:
    """How much the readers take from each unit, in units of the hidden state."""
    return by_kind(layer, lambda kind: _taken(layer, kind))


def _taken(layer: LayerView, kind: Kind) -> Tensor:
    member = reader(layer, kind)
    by_channel = column_sums(layer, member.linear) * input_rms(layer, member.linear)
    return by_unit(by_channel, member).sum(dim=1)
