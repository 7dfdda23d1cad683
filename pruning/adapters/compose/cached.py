"""CMLoRA for text: the contributions of most adapters are held between refreshes.

After Zou et al., "Cached Multi-Lora Composition for Multi-Concept Image Generation", ICLR 2025,
https://arxiv.org/abs/2502.04923.  Steps are tokens here.  Neighbouring tokens share less than
neighbouring denoising steps: about half of what an adapter adds is constant along a sequence, the
rest varies.  So what is held is the mean over the prompt, which the prefill gives for nothing, and
of the last refresh as much as still correlates: m + ρ(τ) (Δy(t₀) − m), the best linear prediction.
Which adapter is refreshed how often follows from the profiles, under a budget.
"""

# Shape suffixes:  S = sequences,  T = tokens,  I = inputs and  O = outputs of a linear.

import math
from collections.abc import Sequence

from torch import Tensor

from pruning.adapters.algebra import Bags
from pruning.adapters.atoms import Key
from pruning.adapters.compose.profile import Profile
from pruning.adapters.compose.sums import Exact

NEVER = 0  # an interval: held at its mean from the prompt on
CHOICES = (NEVER, 16, 12, 8, 6, 4, 3, 2, 1)  # rarer first


class Cached(Exact):
    """The exact sum at refreshes, part by part, and the best prediction between them."""

    def __init__(
        self,
        parts: Sequence[Bags],
        weights: Sequence[float],
        profiles: Sequence[Profile],
        intervals: Sequence[int],
    ) -> None:
        super().__init__(parts, weights)
        self._profiles, self._intervals = tuple(profiles), tuple(intervals)
        self._means: dict[tuple[int, Key], Tensor | float] = {}
        self._kept: dict[tuple[int, Key], Tensor | float] = {}

    def one(self, index: int, key: Key, inputs_STI: Tensor) -> Tensor | float:
        if key not in self.parts[index]:
            return 0.0
        place, interval = (index, key), self._intervals[index]
        age = self.step if interval == NEVER else self.step % interval
        if age and self.step:
            mean = self._means[place]
            return mean + self._correlation(index, key, age) * (self._kept[place] - mean)
        whole_STO = super().one(index, key, inputs_STI)
        assert isinstance(whole_STO, Tensor)
        if self.step == 0:
            self._means[place] = whole_STO.mean(dim=1, keepdim=True)
        self._kept[place] = whole_STO[:, -1:]
        return whole_STO

    def _correlation(self, index: int, key: Key, age: int) -> float:
        known = self._profiles[index][key].correlation_L
        return float(known[age]) if age < len(known) else 0.0


def error(profile: Profile, weight: float, interval: int) -> float:
    """The mean squared error of what is held, over all linears and ages; an interval of 1 has none.

    w² Σ E‖Δy − m‖² · mean over the ages τ of 1 − ρ(τ)².
    """
    lost = 0.0
    for spread in profile.values():
        held = 0.0 if interval == NEVER else float(spread.correlation_L[:interval].square().sum())
        lost += spread.varying * (1 - held / max(interval, 1))
    return weight**2 * lost


def intervals(
    profiles: Sequence[Profile], weights: Sequence[float], budget: float
) -> tuple[int, ...]:
    """How often each adapter is refreshed, so that the error is small and Σ 1 / interval ≤ budget.

    Greedy: the next refreshes go where they save most for what they cost.
    """
    chosen = [NEVER] * len(profiles)
    while True:
        spent = sum(map(_cost, chosen))
        moves = [
            (_gain(profiles[i], weights[i], chosen[i], to), i, to)
            for i in range(len(profiles))
            for to in CHOICES
            if _cost(chosen[i]) < _cost(to) <= budget - spent + _cost(chosen[i]) + 1e-9
        ]
        best = max(moves, default=(-math.inf, 0, 0))
        if best[0] <= 0:
            return tuple(chosen)
        chosen[best[1]] = best[2]


def _cost(interval: int) -> float:
    return 0.0 if interval == NEVER else 1 / interval


def _gain(profile: Profile, weight: float, before: int, after: int) -> float:
    saved = error(profile, weight, before) - error(profile, weight, after)
    return saved / (_cost(after) - _cost(before))
