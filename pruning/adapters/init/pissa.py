"""PiSSA: the factors begin as the principal singular part of the weight, which the base gives up.

Meng et al., "PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language
Models", NeurIPS 2024, https://arxiv.org/abs/2404.02948, equations 2 to 4: with W = U S Vᵀ,
s · B · A = U[:, :r] S[:r] V[:, :r]ᵀ, the root of S on either side.  PEFT's code.
"""

from pruning.adapters.train.starts import Starts
from pruning.adapters.train.through_peft import config, starts_of
from pruning.adapters.train.tuned import Site
from pruning.methods.entry import Params


def begin(site: Site, params: Params) -> Starts:
    """A whole singular value decomposition of each weight."""
    return starts_of(site, config(site, "pissa"))
