"""Linear: a layer keeps the average fraction plus a multiple of its centred importance.

Pan et al., "Adapt-Pruner: Adaptive Structural Pruning for Efficient Small Language Model
Training", arXiv 2025, https://arxiv.org/abs/2502.03460.  The paper takes many small steps with
training in between and measures the importance anew before each; here there is one step, as large
as `amplitude` says.
"""

from pruning.allocation.spread import both_kinds, shifted
from pruning.methods.allocators import LinearParams
from pruning.plan import Widths
from pruning.registry import Problem
from pruning.statistics.influence import WHOLE


def allocate(problem: Problem, params: LinearParams) -> Widths:
    """keep = average + amplitude · importance; −cosine, centred and scaled to at most 1."""
    importance = {
        layer: -problem.statistics.influence[layer, WHOLE].mean_cosine
        for layer in range(problem.space.num_layers)
    }
    mean = sum(importance.values()) / len(importance)
    largest = max(abs(value - mean) for value in importance.values()) or 1.0
    moves = {i: params.amplitude * (v - mean) / largest for i, v in importance.items()}
    return both_kinds(problem.space, lambda counts, total: shifted(counts, total, moves))
