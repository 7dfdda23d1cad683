"""Taylor: how much the loss changes when a unit is set to zero.

Ma et al., "LLM-Pruner: On the Structural Pruning of Large Language Models", NeurIPS 2023,
https://arxiv.org/abs/2305.11627: s = w · ∂L/∂w of every weight of the coupled rows and columns.
Variant "element" takes |s| and then sums; "vector" sums each row or column and then takes |·|.
With the diagonal Fisher information F, the mean of squared gradients of single sequences, "second"
is w² F and "mix" |s - ½ w² F|, both taken weight by weight as in the authors' code (whose "second"
leaves out the half).  Biases carry no score, as there.
"""

from torch import Tensor

from pruning.methods.criteria import TaylorParams
from pruning.registry import LayerScores, LayerView
from pruning.scoring import by_kind, summed
from pruning.units import Member


def score(layer: LayerView, params: TaylorParams) -> LayerScores:
    """Summed saliency of each unit's rows and columns, in units of the loss (nats per token)."""

    def channels(member: Member) -> Tensor:
        key, statistics = (layer.index, member.linear), layer.statistics
        if params.variant == "second":
            return statistics.sequence_gradients[key].second_C
        if params.variant == "mix":
            return statistics.sequence_gradients[key].mix_C
        if params.variant == "vector":
            return statistics.saliency[key].vector_C.abs()
        return statistics.saliency[key].element_C

    return by_kind(layer, lambda kind: summed(layer, kind, channels))
