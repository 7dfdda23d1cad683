"""Criteria: which units matter least."""

from typing import Literal

from pydantic import Field, model_validator

from pruning.methods.entry import MethodEntry, Paper, Params, Statistic


class MagnitudeParams(Params):
    norm: Literal["l1", "l2"] = "l2"


class TaylorParams(Params):
    # first order, absolute value before (element) or after (vector) summing; diagonal Fisher
    # alone (second), or subtracted from the first order (mix)
    variant: Literal["element", "vector", "second", "mix"] = "element"

    @property
    def needs(self) -> frozenset[Statistic]:
        first_order = self.variant in ("element", "vector")
        return frozenset({"saliency" if first_order else "sequence_gradients"})


class EntropyParams(Params):
    variant: Literal["element", "vector"] = "element"


class FluctuationParams(Params):
    variant: Literal["fixed", "released"] = "fixed"  # released: with the errors of FLAP's code

    @property
    def needs(self) -> frozenset[Statistic]:
        return frozenset({"input_moments" if self.variant == "fixed" else "released_fluctuation"})


class CfspParams(Params):
    variant: Literal["fixed", "released"] = "fixed"  # released: the weights cancel out
    b: float = Field(1, ge=0, le=4)  # exponent of the norm inside the normalised term
    c: float = Field(1, ge=0, le=4)  # and of the norm outside


class GblmParams(Params):
    alpha: float = Field(1, ge=0)  # weight of the gradient term; 1: as much as the activations'
    norm: Literal["l1", "l2"] = "l2"  # over the gradients of single sequences


class PqParams(Params):
    p: float = Field(0.5, gt=0, le=1)
    q: float = Field(1, gt=0, le=2)
    eta: float = Field(0, ge=0)
    variant: Literal["mass", "retained"] = "mass"

    @model_validator(mode="after")
    def _ordered(self) -> "PqParams":
        if self.p >= self.q:
            raise ValueError("p must be less than q")
        return self


class ObsParams(Params):
    damping: float = Field(0.01, gt=0, le=1)  # of the mean of the Gram's diagonal
    rounds: int = Field(16, ge=1)  # in which units leave; more is greedier and slower
    # guided: tokens weigh by the squared gradient of the loss where their errors would be
    tokens: Literal["alike", "guided"] = "alike"

    @property
    def needs(self) -> frozenset[Statistic]:
        return frozenset({"input_grams" if self.tokens == "alike" else "guided_grams"})


FLAP = Paper(
    "An et al.",
    "Fluctuation-based Adaptive Structured Pruning for Large Language Models",
    "AAAI 2024",
    "https://arxiv.org/abs/2312.11983",
)
CFSP = Paper(
    "Wang et al.",
    "CFSP: An Efficient Structured Pruning Framework for LLMs with Coarse-to-Fine "
    "Activation Information",
    "COLING 2025",
    "https://arxiv.org/abs/2409.13199",
)


ENTRIES = (
    MethodEntry(
        "criterion",
        "magnitude",
        "norm of all weights of a unit",
        Paper(
            "Han et al.",
            "Learning both Weights and Connections for Efficient Neural Networks",
            "NeurIPS 2015",
            "https://arxiv.org/abs/1506.02626",
        ),
        params=MagnitudeParams,
    ),
    MethodEntry(
        "criterion",
        "random",
        "a seeded coin per unit: the honest baseline",
        Paper(
            "Liu et al.",
            "The Unreasonable Effectiveness of Random Pruning: Return of the Most Naive Baseline "
            "for Sparse Training",
            "ICLR 2022",
            "https://arxiv.org/abs/2202.02643",
        ),
    ),
    MethodEntry(
        "criterion",
        "taylor",
        "first-order change of the loss when a unit leaves (LLM-Pruner)",
        Paper(
            "Ma et al.",
            "LLM-Pruner: On the Structural Pruning of Large Language Models",
            "NeurIPS 2023",
            "https://arxiv.org/abs/2305.11627",
        ),
        params=TaylorParams,
    ),
    MethodEntry(
        "criterion",
        "fluctuation",
        "variance of a unit's activations times the weights that read it (FLAP)",
        FLAP,
        params=FluctuationParams,
        comparable=False,
    ),
    MethodEntry(
        "criterion",
        "wanda",
        "weights that read a unit times the norm of what they read (Wanda-sp)",
        Paper(
            "Sun et al.",
            "A Simple and Effective Pruning Approach for Large Language Models",
            "ICLR 2024",
            "https://arxiv.org/abs/2306.11695",
        ),
        needs=frozenset({"input_moments"}),
        comparable=False,
    ),
    MethodEntry(
        "criterion",
        "minitron",
        "norm of a unit's activations",
        Paper(
            "Muralidharan et al.",
            "Compact Language Models via Pruning and Knowledge Distillation",
            "NeurIPS 2024",
            "https://arxiv.org/abs/2407.14679",
        ),
        needs=frozenset({"absolute_means"}),
        comparable=False,
    ),
    MethodEntry(
        "criterion",
        "cfsp",
        "relative activation of a unit: share of the weights, times the norm of its activations",
        CFSP,
        params=CfspParams,
        needs=frozenset({"input_moments"}),
        comparable=False,
    ),
    MethodEntry(
        "criterion",
        "entropy",
        "first-order change of the entropy of the predictions when a unit leaves (HFPrune)",
        Paper(
            "Zhu et al.",
            "High-Fidelity Pruning for Large Language Models",
            "arXiv 2026",
            "https://arxiv.org/abs/2603.08083",
        ),
        params=EntropyParams,
        needs=frozenset({"entropy_saliency"}),
    ),
    MethodEntry(
        "criterion",
        "gblm",
        "weights times the norms of their inputs and of their gradients, blended",
        Paper(
            "Das et al.",
            "Beyond Size: How Gradients Shape Pruning Decisions in Large Language Models",
            "arXiv 2023",
            "https://arxiv.org/abs/2311.04902",
        ),
        params=GblmParams,
        needs=frozenset({"input_moments", "hidden_moments", "sequence_gradients"}),
        comparable=False,
    ),
    MethodEntry(
        "criterion",
        "ecoflap",
        "Wanda within a block, zeroth-order sensitivity between blocks",
        Paper(
            "Sung et al.",
            "ECoFLaP: Efficient Coarse-to-Fine Layer-Wise Pruning for Vision-Language Models",
            "ICLR 2024",
            "https://arxiv.org/abs/2310.02998",
        ),
        needs=frozenset({"input_moments", "zeroth_order"}),
    ),
    MethodEntry(
        "criterion",
        "relevance",
        "what layer-wise relevance propagation credits to a unit (Pruning by Explaining)",
        Paper(
            "Yeom et al.",
            "Pruning by Explaining: A Novel Criterion for Deep Neural Network Pruning",
            "Pattern Recognition 2021",
            "https://arxiv.org/abs/1912.08881",
        ),
        needs=frozenset({"relevance"}),
    ),
    MethodEntry(
        "criterion",
        "lora_guided",
        "saliency from the gradients of a LoRA alone (LoRAPrune, one shot)",
        Paper(
            "Zhang et al.",
            "LoRAPrune: Structured Pruning Meets Low-Rank Parameter-Efficient Fine-Tuning",
            "Findings of ACL 2024",
            "https://arxiv.org/abs/2305.18403",
        ),
        needs=frozenset({"lora_saliency"}),
        comparable=False,
    ),
    MethodEntry(
        "criterion",
        "pq",
        "what the bound of the PQ index would keep of a unit's weights",
        Paper(
            "Diao et al.",
            "Pruning Deep Neural Networks from a Sparsity Perspective",
            "ICLR 2023",
            "https://arxiv.org/abs/2302.05601",
        ),
        params=PqParams,
    ),
    MethodEntry(
        "criterion",
        "obs",
        "error that is left when a unit leaves and the others are refit (ZipLM)",
        Paper(
            "Kurtic et al.",
            "ZipLM: Inference-Aware Structured Pruning of Language Models",
            "NeurIPS 2023",
            "https://arxiv.org/abs/2302.04089",
        ),
        params=ObsParams,
        comparable=False,
    ),
)
