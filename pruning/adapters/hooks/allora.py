"""Larger steps for the short rows of B, in the place of dropout and of a scale.

Huang and Balestriero, "ALLoRA: Adaptive Learning Rate Mitigates LoRA Fatal Flaws", arXiv 2024,
https://arxiv.org/abs/2410.09692, equation 8: the step of a row is multiplied by
1 / √(‖row‖ + 1 / η²), which is η where the row is zero.  Adam would undo a factor on gradients, so
it is on the step that the optimizer has taken.
"""

# Shape suffixes:  R = atoms,  O = outputs of the linear.

from torch import Tensor, nn

from pruning.adapters.train.tuned import Around, Setting, Tuned, trained_sides
from pruning.methods.training import AlloraParams


class Stretching(Around):
    """Takes the optimizer's step of each row of B once more, longer or shorter."""

    def __init__(self, factors: list[nn.Parameter], eta: float):
        self._factors, self._eta = factors, eta
        self._before: list[Tensor] = []

    def before(self, step: int) -> None:
        self._before = [factor.detach().clone() for factor in self._factors]

    def after(self, rate: float) -> None:
        for factor, before_OR in zip(self._factors, self._before, strict=True):
            stretch_O = (before_OR.norm(dim=1) + self._eta**-2).rsqrt()
            step_OR = factor.data - before_OR
            factor.data = before_OR + stretch_O[:, None] * step_OR


def attach(tuned: Tuned, params: AlloraParams, setting: Setting) -> Around:
    """For forms that train B; InvalidInput otherwise."""
    return Stretching([b for _, b in trained_sides(tuned, "allora").values()], params.eta)
