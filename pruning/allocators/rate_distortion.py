"""Rate-distortion: the widths of which the distortions of the logits, added up, are least.

Xu et al., "Efficient Joint Optimization of Layer-Adaptive Weight Pruning in Deep Neural Networks",
ICCV 2023, https://arxiv.org/abs/2308.10438: each block is narrowed alone and the squared error of
the output measured; were these errors additive, dynamic programming would find the best widths.
The whole base is held in memory in float32 (`memory_gib` bounds it): it is meant for small bases.
"""

import torch
from torch import Tensor

from pruning.allocation.programming import changed, least, widest
from pruning.allocation.selection import select
from pruning.allocation.trial import Trial
from pruning.methods.allocators import RateDistortionParams
from pruning.plan import Widths
from pruning.registry import Problem
from pruning.units import Kind


def allocate(problem: Problem, params: RateDistortionParams) -> Widths:
    """The best widths, were distortions additive."""
    distortion = _Distortion(problem, params.sequences)
    return least(problem.space, distortion, params.levels, problem.progress)


class _Distortion:
    """How far the logits move when one block alone is narrowed."""

    def __init__(self, problem: Problem, sequences: int):
        self._problem, self._sequences = problem, sequences
        ids_ST = problem.calibration()[:sequences]
        self._trial = Trial(problem.checkpoint, ids_ST, problem.statistics)
        self._head_gram_HH = self._trial.head_gram()
        self._widest = widest(problem.space)
        self._states = self._states_of(self._widest)

    def __call__(self, kind: Kind, layer: int, count: int) -> float:
        """Mean over tokens of the squared error of all logits."""
        narrowed = changed(self._widest, kind, layer, count)
        if narrowed == self._widest:
            return 0.0
        error, tokens = 0.0, 0
        found = self._states_of(narrowed)
        for before_STH, after_STH in zip(self._states, found, strict=True):
            moved_NH = (after_STH - before_STH).flatten(0, 1)
            error += float(((moved_NH @ self._head_gram_HH) * moved_NH).sum(dtype=torch.float64))
            tokens += len(moved_NH)
        return error / tokens

    def _states_of(self, widths: Widths) -> list[Tensor]:
        plan = select(self._problem.scores, widths, self._problem.recipe.bias_compensation)
        return self._trial.final_states(plan, self._sequences)
