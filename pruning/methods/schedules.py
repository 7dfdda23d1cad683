"""Schedules: how many cuts lead to the target."""

from pydantic import Field

from pruning.methods.entry import MethodEntry, Paper, Params


class InterleavedParams(Params):
    step: float = Field(0.05, gt=0, lt=1)  # of the dense body, in one cut


class CubicParams(Params):
    cuts: int = Field(5, ge=1)


class SoftShrinkParams(Params):
    ratio: float = Field(0.99, gt=0, lt=1)  # of the weights of what is to leave, in each step


class UntilStopParams(Params):
    p: float = Field(0.5, gt=0, lt=1)  # of the PQ index, whose q is 1
    eta: float = Field(0, ge=0)
    gamma: float = Field(1, gt=0)
    beta: float = Field(0.9, gt=0, lt=1)
    rounds: int = Field(5, ge=1, le=100)  # at most


ENTRIES = (
    MethodEntry(
        "schedule",
        "one_shot",
        "one cut, straight to the target",
        Paper(
            "Frantar and Alistarh",
            "SparseGPT: Massive Language Models Can be Accurately Pruned in One-Shot",
            "ICML 2023",
            "https://arxiv.org/abs/2301.00774",
        ),
    ),
    MethodEntry(
        "schedule",
        "interleaved",
        "small cuts of one size with recovery between them (Adapt-Pruner)",
        Paper(
            "Pan et al.",
            "Adapt-Pruner: Adaptive Structural Pruning for Efficient Small Language Model Training",
            "arXiv 2025",
            "https://arxiv.org/abs/2502.03460",
        ),
        params=InterleavedParams,
    ),
    MethodEntry(
        "schedule",
        "cubic",
        "large cuts at first and small ones at last with recovery between them",
        Paper(
            "Zhu and Gupta",
            "To prune, or not to prune: exploring the efficacy of pruning for model compression",
            "ICLR 2018 workshop",
            "https://arxiv.org/abs/1710.01878",
        ),
        params=CubicParams,
    ),
    MethodEntry(
        "schedule",
        "soft_shrink",
        "training in which the weakest units shrink a little in each step, then one cut (ISS-P)",
        Paper(
            "Wang et al.",
            "Iterative Soft Shrinkage Learning for Efficient Image Super-Resolution",
            "ICCV 2023",
            "https://arxiv.org/abs/2303.09650",
        ),
        params=SoftShrinkParams,
    ),
    MethodEntry(
        "schedule",
        "until_stop",
        "rounds as deep as the weights are sparse, until their PQ index falls again (SAP)",
        Paper(
            "Diao et al.",
            "Pruning Deep Neural Networks from a Sparsity Perspective",
            "ICLR 2023",
            "https://arxiv.org/abs/2302.05601",
        ),
        params=UntilStopParams,
    ),
)
