"""OLoRA: the factors begin as the first columns of Q and rows of R of the weight.

Büyükakyüz, "OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models", arXiv 2024,
https://arxiv.org/abs/2406.01775, algorithm 1: W = Q R, B = Q[:, :r], A = R[:r], and the base gives
s · B · A up.  PEFT's code.
"""

from pruning.adapters.train.starts import Starts
from pruning.adapters.train.through_peft import config, starts_of
from pruning.adapters.train.tuned import Site
from pruning.methods.entry import Params


def begin(site: Site, params: Params) -> Starts:
    """A QR decomposition of each weight."""
    return starts_of(site, config(site, "olora"))
