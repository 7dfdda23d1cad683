"""Sigmoid: a layer keeps in proportion to the sigmoid of how far it turns the hidden states.

The coarse step of Wang et al., "CFSP: An Efficient Structured Pruning Framework for LLMs with
Coarse-to-Fine Activation Information", COLING 2025, https://arxiv.org/abs/2409.13199.  The paper
sums the angles over all calibration tokens, so that its strength grows with their number; here
they are averaged, and `a` stands for the strength.
"""

import math

from pruning.allocation.spread import both_kinds, proportional
from pruning.methods.allocators import SigmoidParams
from pruning.plan import Widths
from pruning.registry import Problem
from pruning.statistics.influence import WHOLE


def allocate(problem: Problem, params: SigmoidParams) -> Widths:
    """keep ∝ 1 / (1 + exp(−a · (angle − mean angle))), angles in units of π."""
    angles = {
        layer: problem.statistics.influence[layer, WHOLE].mean_angle
        for layer in range(problem.space.num_layers)
    }
    mean = sum(angles.values()) / len(angles)
    weights = {i: 1 / (1 + math.exp(-params.a * (angle - mean))) for i, angle in angles.items()}
    return both_kinds(problem.space, lambda counts, total: proportional(counts, total, weights))
