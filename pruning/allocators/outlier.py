"""Outlier: layers with a larger share of outliers among |weight| · input norm keep more.

Yin et al., "Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to
High Sparsity", ICML 2024, https://arxiv.org/abs/2310.05175.  The paper looks at all linears of a
layer; here at the two that read units, o_proj and down_proj, whose inputs are measured anyway.
"""

# Shape suffixes:  O = outputs,  C = inputs of a linear.

from torch import Tensor

from pruning.allocation.spread import both_kinds, shifted
from pruning.methods.allocators import OutlierParams
from pruning.plan import Widths
from pruning.registry import Problem
from pruning.units import READERS
from pruning.weights.tensors import block_of


def allocate(problem: Problem, params: OutlierParams) -> Widths:
    """keep = average + outlier ratio, scaled to a range of 2 · spread and centred."""
    ratios = [_ratio(problem, layer, params.m) for layer in range(problem.space.num_layers)]
    low, high = min(ratios), max(ratios)
    scale = 2 * params.spread / (high - low) if high > low else 0.0
    mean = sum(ratios) / len(ratios)
    moves = {layer: scale * (ratio - mean) for layer, ratio in enumerate(ratios)}
    return both_kinds(problem.space, lambda counts, total: shifted(counts, total, moves))


def _ratio(problem: Problem, layer: int, m: float) -> float:
    outliers, values = 0, 0
    for linear in READERS.values():
        name = f"model.layers.{layer}.{block_of(linear)}.{linear}.weight"
        moments = problem.statistics.moments[layer, linear]
        weight_OC = problem.checkpoint.tensor(name)
        outliers += count(weight_OC.double().abs() * moments.mean_square_C.sqrt(), m)
        values += weight_OC.numel()
    return outliers / values


def count(importance_OC: Tensor, m: float) -> int:
    """How many are more than `m` times the mean."""
    return int((importance_OC > m * importance_OC.mean()).sum())
