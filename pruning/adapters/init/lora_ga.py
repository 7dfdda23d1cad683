"""LoRA-GA: the factors begin along the singular vectors of the first gradient.

Wang et al., "LoRA-GA: Low-Rank Adaptation with Gradient Approximation", NeurIPS 2024,
https://arxiv.org/abs/2407.05000, section 3: with the mean gradient G = U S Vᵀ, A = V[:, :r]ᵀ and
B = U[:, r:2r], so that the first step of the factors is near that of the weight; B is multiplied
by outputs^¼ / √gamma, and the base gives s · B · A up.  PEFT's code, which multiplies B by the
singular values as well.
"""

from peft.tuners.lora.config import LoraGAConfig

from pruning.adapters.compression import linear_of
from pruning.adapters.train.starts import Starts
from pruning.adapters.train.through_peft import config, starts_of
from pruning.adapters.train.tuned import Site
from pruning.methods.training import LoraGaParams


def begin(site: Site, params: LoraGaParams) -> Starts:
    """A forward and a backward pass over the rows; needs memory for the linears' gradients."""
    chosen = config(site, "lora_ga", lora_ga_config=LoraGAConfig(stable_gamma=params.gamma))
    try:
        for key, gradient_OI in site.gradients().items():
            linear_of(site.model, key)._peft_loraga_grad = gradient_OI
        return starts_of(site, chosen)
    finally:
        for key in site.ranks:
            vars(linear_of(site.model, key)).pop("_peft_loraga_grad", None)
