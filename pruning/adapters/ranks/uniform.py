"""The same rank for every linear that is trained.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022,
https://arxiv.org/abs/2106.09685, section 4.2.
"""

from pruning.adapters.atoms import Key
from pruning.adapters.train.tuned import Site
from pruning.methods.entry import Params


def share(site: Site, params: Params) -> dict[Key, int]:
    """The ranks as the recipe has them."""
    return dict(site.ranks)
