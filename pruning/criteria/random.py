"""Random: a seeded number per unit, the baseline that any criterion has to beat.

Liu et al., "The Unreasonable Effectiveness of Random Pruning: Return of the Most Naive Baseline
for Sparse Training", ICLR 2022, https://arxiv.org/abs/2202.02643.
"""

import torch

from pruning.methods.entry import Params
from pruning.registry import LayerScores, LayerView


def score(layer: LayerView, params: Params) -> LayerScores:
    """Uniform in [0, 1), from the recipe's seed and the index of the layer."""
    widths = layer.geometry.layers[layer.index]
    generator = torch.Generator().manual_seed(layer.seed * len(layer.geometry.layers) + layer.index)
    draw = torch.rand(
        widths.num_kv_heads + widths.intermediate_size, dtype=torch.float64, generator=generator
    )
    heads = torch.rand(widths.num_heads, dtype=torch.float64, generator=generator)
    return LayerScores(
        draw[: widths.num_kv_heads],
        draw[widths.num_kv_heads :],
        heads if "query_head" in layer.kinds else None,
    )
