"""The start of LoRA: A uniform in ±1 / √inputs, B zero, so that the first step is the base's.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022,
https://arxiv.org/abs/2106.09685, section 4.1; A as in their code (kaiming, a = √5).
"""

import torch

from pruning.adapters.merging import seed_of
from pruning.adapters.train.starts import Start, Starts, kaiming
from pruning.adapters.train.tuned import Site
from pruning.methods.entry import Params


def begin(site: Site, params: Params) -> Starts:
    """Each linear's A has a seed of its own, whatever else is trained."""
    linears = {}
    for key, rank in site.ranks.items():
        outputs, inputs = site.weight(key).shape
        generator = torch.Generator().manual_seed(seed_of(site.seed, key))
        a_RI = kaiming(rank, inputs, generator)
        linears[key] = Start(a_RI, torch.zeros(outputs, rank))
    return Starts(linears, site.scale)
