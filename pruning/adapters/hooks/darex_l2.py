"""ΔW is kept short, so that most of its entries or atoms may be dropped afterwards.

Deng et al., "DARE the Extreme: Revisiting Delta-Parameter Pruning For Fine-Tuned Models",
ICLR 2025, https://arxiv.org/abs/2410.09344, section 4.2 (AdamR-L2): the distance from the base is
decayed; of a LoRA this is decay · ‖s B A‖² in the loss, from the inner products of the factors.
"""

from torch import Tensor

from pruning.adapters.train.tuned import Around, Setting, Tuned, side_a, side_b
from pruning.methods.training import DarexParams


class Shortening(Around):
    """Adds the squared lengths of all ΔW to the loss."""

    def __init__(self, tuned: Tuned, decay: float):
        self._tuned, self._decay = tuned, decay

    def penalty(self) -> Tensor:
        lengths = [
            (
                (side_a(layer).weight @ side_a(layer).weight.T)
                * (side_b(layer).weight.T @ side_b(layer).weight)
            ).sum()
            for layer in self._tuned.layers.values()
        ]
        return self._decay * self._tuned.starts.scale**2 * sum(lengths[1:], lengths[0])


def attach(tuned: Tuned, params: DarexParams, setting: Setting) -> Around:
    """For any form."""
    return Shortening(tuned, params.decay)
