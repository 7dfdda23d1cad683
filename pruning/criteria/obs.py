"""OBS: what a unit costs once the units that stay have been refit in its place.

Kurtic et al., "ZipLM: Inference-Aware Structured Pruning of Language Models", NeurIPS 2023,
https://arxiv.org/abs/2302.04089, its structured Optimal Brain Surgeon: the units of a layer leave
greedily, each at the rise of the reader's squared output error that no refit could avoid.

With `tokens: guided` errors count by how much the loss minds them at their token: the Gram is that
of Kim et al., "GuidedQuant", ICML 2025, https://arxiv.org/abs/2505.07004, used there to quantize.

Scored on the inputs of the dense base.  Scoring on inputs that went through the pruned and refit
layers before gave the same quality on the bundled model.
"""

import torch
from torch import Tensor

from pruning.methods.criteria import ObsParams
from pruning.registry import LayerScores, LayerView
from pruning.scoring import by_kind, reader
from pruning.statistics.grams import elimination
from pruning.units import Kind


def score(layer: LayerView, params: ObsParams) -> LayerScores:
    """Summed squared error over the calibration tokens that each unit adds as it leaves."""
    return by_kind(layer, lambda kind: _costs(layer, kind, params))


def _costs(layer: LayerView, kind: Kind, params: ObsParams) -> Tensor:
    member = reader(layer, kind)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    statistics, guided = layer.statistics, params.tokens == "guided"
    grams = statistics.guided_grams if guided else statistics.grams
    gram_CC = grams[layer.index, member.linear].to(device)
    weight_HC = layer.weights[member.linear].to(device)
    return elimination(weight_HC, gram_CC, member.channels, params.damping, params.rounds)
