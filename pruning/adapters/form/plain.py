"""Both factors are trained, as in LoRA.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022,
https://arxiv.org/abs/2106.09685, section 4.1.
"""

from pruning.adapters.train.tuned import Setting, Tuned
from pruning.methods.entry import Params


def attach(tuned: Tuned, params: Params, setting: Setting) -> None:
    """Nothing but the factors: they are trained as they were attached."""
