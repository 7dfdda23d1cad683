"""Allocators: how many units leave each layer."""

from typing import Literal

from pydantic import Field

from pruning.methods.criteria import CFSP, FLAP
from pruning.methods.entry import MethodEntry, Paper, Params, Statistic


class GlobalParams(Params):
    # standardize: zero mean and unit deviation per layer and kind, as FLAP does before ranking;
    # auto: where the criterion's scores of different layers are not on one scale
    normalize: Literal["auto", "none", "standardize"] = "auto"


class SigmoidParams(Params):
    # how sharply layers of more and of less influence part; the default is the paper's a = 1 on
    # its sum over 128 sequences of 1024 tokens divided by 1e4, for the mean used here
    a: float = Field(13.1072, ge=0, le=1000)


class LinearParams(Params):
    # how much more of the least important layer leaves than of the average one, as a fraction of
    # it; the paper moves in many steps of 0.02
    amplitude: float = Field(0.2, ge=0, le=1)


class ProportionalParams(Params):
    most: float = Field(0.8, gt=0, lt=1)  # the most that leaves of any layer and kind

    @property
    def least_fraction(self) -> float:
        return 1 - self.most


class PqIndexParams(Params):
    p: float = Field(0.5, gt=0, lt=1)  # the norms that are compared; q is 1
    eta: float = Field(0.0, ge=0, le=1)  # loss that the bound allows for
    gamma: float = Field(1.0, gt=0, le=1)  # the part of the bound that is used
    beta: float = Field(0.9, gt=0, lt=1)  # the most that is proposed


class OutlierParams(Params):
    m: float = Field(5.0, gt=1)  # an outlier is so many times the mean
    # how far the kept fractions of layers may lie above and below the average
    spread: float = Field(0.08, gt=0, lt=1)


class WholeBaseParams(Params):
    memory_gib: float = Field(8.0, gt=0)  # the largest base, in float32, that is held in memory

    @property
    def most_memory_gib(self) -> float:
        return self.memory_gib


class RateDistortionParams(WholeBaseParams):
    levels: int = Field(8, ge=1, le=64)  # widths measured in each block
    sequences: int = Field(8, ge=1)  # of the calibration text


class SearchParams(WholeBaseParams):
    rounds: int = Field(4, ge=0, le=100)  # of dynamic programming, at most, before the evolution
    levels: int = Field(8, ge=1, le=64)  # widths of each block that a round measures
    generations: int = Field(16, ge=1, le=10000)
    offspring: int = Field(12, ge=1, le=1000)
    sequences: int = Field(32, ge=1)  # of the calibration text; selection starts on fewer
    # divergence: of the next tokens' distributions from the dense base's
    fitness: Literal["loss", "divergence"] = "loss"
    refit: bool = False  # judge candidates with their readers refit, as closed_form will
    damping: float = Field(0.01, gt=0, le=1)  # of that refit

    @property
    def needs(self) -> frozenset[Statistic]:
        return frozenset({"input_grams"}) if self.refit else frozenset()


ENTRIES = (
    MethodEntry(
        "allocator",
        "uniform",
        "the same number of units in every layer",
        Paper(
            "Zhu and Gupta",
            "To prune, or not to prune: exploring the efficacy of pruning for model compression",
            "ICLR 2018 workshop",
            "https://arxiv.org/abs/1710.01878",
        ),
    ),
    MethodEntry(
        "allocator",
        "global",
        "one ranking across all layers, with a floor in each",
        Paper(
            "Gupta et al.",
            "Is Complexity Required for Neural Network Pruning? A Case Study on Global Magnitude "
            "Pruning",
            "IEEE CAI 2024",
            "https://arxiv.org/abs/2209.14624",
        ),
        params=GlobalParams,
    ),
    MethodEntry(
        "allocator",
        "standardized",
        "KV groups and FFN channels in one ranking of standardised scores (FLAP's AL-AM)",
        FLAP,
    ),
    MethodEntry(
        "allocator",
        "sigmoid",
        "more stays of layers that turn the hidden states further (CFSP)",
        CFSP,
        params=SigmoidParams,
        needs=frozenset({"influence"}),
    ),
    MethodEntry(
        "allocator",
        "linear",
        "a layer's fraction moves with its centred importance (Adapt-Pruner, in one step)",
        Paper(
            "Pan et al.",
            "Adapt-Pruner: Adaptive Structural Pruning for Efficient Small Language Model Training",
            "arXiv 2025",
            "https://arxiv.org/abs/2502.03460",
        ),
        params=LinearParams,
        needs=frozenset({"influence"}),
    ),
    MethodEntry(
        "allocator",
        "proportional",
        "what stays of a layer is proportional to its sensitivity, with a floor (ECoFLaP)",
        Paper(
            "Sung et al.",
            "ECoFLaP: Efficient Coarse-to-Fine Layer-Wise Pruning for Vision-Language Models",
            "ICLR 2024",
            "https://arxiv.org/abs/2310.02998",
        ),
        params=ProportionalParams,
        needs=frozenset({"saliency"}),
    ),
    MethodEntry(
        "allocator",
        "erk",
        "linears with fewer weights per input and output stay denser",
        Paper(
            "Evci et al.",
            "Rigging the Lottery: Making All Tickets Winners",
            "ICML 2020",
            "https://arxiv.org/abs/1911.11134",
        ),
    ),
    MethodEntry(
        "allocator",
        "pq_index",
        "layers whose scores are sparser give up more (SAP)",
        Paper(
            "Diao et al.",
            "Pruning Deep Neural Networks from a Sparsity Perspective",
            "ICLR 2023",
            "https://arxiv.org/abs/2302.05601",
        ),
        params=PqIndexParams,
    ),
    MethodEntry(
        "allocator",
        "outlier",
        "more stays of layers with more outliers (OWL)",
        Paper(
            "Yin et al.",
            "Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to "
            "High Sparsity",
            "ICML 2024",
            "https://arxiv.org/abs/2310.05175",
        ),
        params=OutlierParams,
        needs=frozenset({"input_moments"}),
    ),
    MethodEntry(
        "allocator",
        "rate_distortion",
        "least sum of the errors of the logits, each block measured alone",
        Paper(
            "Xu et al.",
            "Efficient Joint Optimization of Layer-Adaptive Weight Pruning in Deep Neural Networks",
            "ICCV 2023",
            "https://arxiv.org/abs/2308.10438",
        ),
        params=RateDistortionParams,
    ),
    MethodEntry(
        "allocator",
        "search",
        "dynamic programming, then evolution (EvoPress) of widths, by the real loss",
        Paper(
            "Sieberling et al.",
            "EvoPress: Accurate Dynamic Model Compression via Evolutionary Search",
            "ICML 2025",
            "https://arxiv.org/abs/2410.14649",
        ),
        params=SearchParams,
    ),
)
