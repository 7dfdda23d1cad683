"""CorDA: the factors begin as the singular part of the weight that matters for given inputs.

Yang et al., "CorDA: Context-Oriented Decomposition Adaptation of Large Language Models",
NeurIPS 2024, https://arxiv.org/abs/2406.05223, section 3: the decomposition of W C, C the
covariance of the inputs, times C⁻¹; the largest components preview a task (`ipm`), the smallest
preserve what the base knows (`kpm`).  PEFT's code.
"""

import torch
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda

from pruning.adapters.compression import linear_of
from pruning.adapters.train.starts import Starts
from pruning.adapters.train.through_peft import config, starts_of
from pruning.adapters.train.tuned import Site
from pruning.methods.training import CordaParams
from pruning.text import IGNORED


def begin(site: Site, params: CordaParams) -> Starts:
    """Needs memory for the covariance of each linear's inputs."""
    chosen = config(site, "corda", corda_config=CordaConfig(corda_method=params.mode))

    @torch.no_grad()
    def run() -> None:
        for ids_BT, labels_BT in site.batches:
            for ids_T, labels_T in zip(ids_BT, labels_BT, strict=True):  # PEFT: one row at a time
                length = int((labels_T != IGNORED).nonzero().max()) + 1
                site.model(input_ids=ids_T[None, :length].to(site.model.device), use_cache=False)

    try:
        preprocess_corda(site.model, chosen, run)
        return starts_of(site, chosen)
    finally:
        for key in site.ranks:
            vars(linear_of(site.model, key)).pop("eigens", None)
