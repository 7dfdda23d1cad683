"""Cuts that are large at first, while much is redundant, and small at last, with recovery between.

Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression",
ICLR 2018 workshop, https://arxiv.org/abs/1710.01878, equation 1; LoRAPrune prunes by it too.
"""

from pruning.methods.schedules import CubicParams


def targets(target: float, params: CubicParams) -> list[float]:
    """After cut i of n: target · (1 − (1 − i/n)³)."""
    cuts = params.cuts
    return [target * (1 - (1 - cut / cuts) ** 3) for cut in range(1, cuts)] + [target]
