"""Entropy: Taylor's score with the entropy of the predictions in the place of the loss.

Zhu et al., "High-Fidelity Pruning for Large Language Models" (HFPrune), arXiv 2026,
https://arxiv.org/abs/2603.08083: what moves the whole predicted distribution matters, not only the
probability of the one true token; no label is read.  The paper prunes the FFN only.
"""

from torch import Tensor

from pruning.methods.criteria import EntropyParams
from pruning.registry import LayerScores, LayerView
from pruning.scoring import by_kind, summed
from pruning.units import Member


def score(layer: LayerView, params: EntropyParams) -> LayerScores:
    """Summed saliency of each unit's rows and columns, in nats of entropy per token."""

    def channels(member: Member) -> Tensor:
        saliency = layer.statistics.entropy_saliency[layer.index, member.linear]
        return saliency.element_C if params.variant == "element" else saliency.vector_C.abs()

    return by_kind(layer, lambda kind: summed(layer, kind, channels))
