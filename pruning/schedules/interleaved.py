"""Small cuts of one size with recovery between them, as Adapt-Pruner interleaves both.

Pan et al., "Adapt-Pruner: Adaptive Structural Pruning for Efficient Small Language Model Training",
arXiv 2025, https://arxiv.org/abs/2502.03460: about 5 % leave at a time.
"""

import math

from pruning.methods.schedules import InterleavedParams


def targets(target: float, params: InterleavedParams) -> list[float]:
    """Evenly spaced, each at most `params.step` of the dense body after the one before."""
    cuts = math.ceil(target / params.step - 1e-9)  # undoes the rounding of 0.3 / 0.05
    return [target * cut / cuts for cut in range(1, cuts)] + [target]
