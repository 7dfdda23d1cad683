"""The catalogue of methods: names, papers and parameters (torch-free; registry has the code)."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pruning.errors import InvalidInput
from pruning.recipe import Method

Kind = Literal["criterion", "allocator", "recovery", "schedule", "merge", "compress"]
Statistic = Literal[
    "input_moments",
    "hidden_moments",
    "absolute_means",
    "released_fluctuation",
    "saliency",
    "entropy_saliency",
    "sequence_gradients",
    "relevance",
    "lora_saliency",
    "zeroth_order",
    "input_grams",
    "influence",
]


@dataclass(frozen=True)
class Paper:
    """Where a method was published."""

    authors: str
    title: str
    venue: str
    url: str


class Params(BaseModel):
    """The parameters of a method; this one has none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def needs(self) -> frozenset[Statistic]:
        """What the calibration pass must collect for these values, besides `MethodEntry.needs`."""
        return frozenset()

    @property
    def least_fraction(self) -> float:
        """What an allocator leaves of each kind in every layer, should the floors be lower."""
        return 0.0

    @property
    def most_memory_gib(self) -> float | None:
        """How large the base may be, in float32, if the method holds all of it in memory."""
        return None


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


class ClosedFormParams(Params):
    damping: float = Field(0.01, gt=0, le=1)  # of the mean of the Gram's diagonal


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
    generations: int = Field(16, ge=1, le=10000)
    offspring: int = Field(12, ge=1, le=1000)
    sequences: int = Field(32, ge=1)  # of the calibration text; selection starts on fewer


class TrainingParams(Params):
    """What every trained recovery has; a check takes the held-out loss."""

    tokens: int = Field(200_000, ge=1)  # to train on, in whole sequences
    learning_rate: float = Field(1e-3, gt=0)  # the highest
    batch: int = Field(8, ge=1)  # sequences
    warmup: float = Field(0.1, ge=0, le=1)  # of the steps
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0)  # of the gradient's norm
    held_out: float = Field(0.05, gt=0, lt=1)  # of the training sequences
    checks: int = Field(20, ge=1)
    patience: int = Field(5, ge=1)  # checks without a better loss before it stops early


class DistillParams(TrainingParams):
    temperature: float = Field(1.0, gt=0)


class LoraParams(TrainingParams):
    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)


class LoraDistillParams(LoraParams, DistillParams):
    pass


class RankParams(Params):
    rank: int | None = Field(None, ge=1)  # none: that of the largest source


class SparseParams(RankParams):
    density: float = Field(0.5, gt=0, le=1)  # of the entries that stay


class LegoParams(Params):
    k: int | None = Field(None, ge=1)  # clusters per linear; none: the mean rank of the sources
    inertia: float | None = Field(None, gt=0, lt=1)  # instead of k: what clusters may leave of it
    parameter_reweighting: bool = True  # a centroid as long as its members are on average
    output_reweighting: bool = True  # √(rank of the sources / rank of the result)
    feature: Literal["unit", "raw"] = "unit"  # unit: a and b of length one before clustering
    gauge: Literal["none", "balanced", "svd"] = "none"  # which of the forms of the same atom
    sign: Literal["keep", "canonical"] = "keep"
    norm: Literal["l2", "inf"] = "l2"  # of the parameter reweighting

    @model_validator(mode="after")
    def _one_size(self) -> "LegoParams":
        if self.k is not None and self.inertia is not None:
            raise ValueError("give k or inertia, not both")
        return self


class TruncationParams(Params):
    rank: int | None = Field(None, ge=1)
    energy: float | None = Field(None, gt=0, le=1)  # of the squared singular values, per linear

    @model_validator(mode="after")
    def _one_size(self) -> "TruncationParams":
        if self.rank is not None and self.energy is not None:
            raise ValueError("give rank or energy, not both")
        return self


class DarexParams(Params):
    drop: float = Field(0.5, ge=0, lt=1)  # the fraction that leaves, at random
    unit: Literal["atom", "entry"] = "atom"  # entry: of ΔW, then the nearest adapter of `rank`
    rank: int | None = Field(None, ge=1)  # none: that of the source


class LadderParams(Params):
    ranks: tuple[int, ...] = Field((4, 2, 1), min_length=1)
    order: Literal["svd", "prefix"] = "svd"  # prefix: the atoms as trained, for DyLoRA adapters


class InterleavedParams(Params):
    step: float = Field(0.05, gt=0, lt=1)  # of the dense body, in one cut


class CubicParams(Params):
    cuts: int = Field(5, ge=1)


@dataclass(frozen=True)
class MethodEntry:
    """What can be known of a method without running it."""

    kind: Kind
    name: str
    summary: str
    paper: Paper
    params: type[Params] = Params
    needs: frozenset[Statistic] = frozenset()  # what the calibration pass must always collect
    comparable: bool = True  # whether scores of different layers are on one scale
    needs_rows: bool = False  # whether it looks at outputs of the base on an adapter's own rows
    from_dense: bool = False  # a recovery that undoes what others did before it


_FLAP = Paper(
    "An et al.",
    "Fluctuation-based Adaptive Structured Pruning for Large Language Models",
    "AAAI 2024",
    "https://arxiv.org/abs/2312.11983",
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
        _FLAP,
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
        Paper(
            "Wang et al.",
            "CFSP: An Efficient Structured Pruning Framework for LLMs with Coarse-to-Fine "
            "Activation Information",
            "COLING 2025",
            "https://arxiv.org/abs/2409.13199",
        ),
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
        needs=frozenset({"input_grams"}),
        comparable=False,
    ),
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
        _FLAP,
    ),
    MethodEntry(
        "allocator",
        "sigmoid",
        "more stays of layers that turn the hidden states further (CFSP)",
        Paper(
            "Wang et al.",
            "CFSP: An Efficient Structured Pruning Framework for LLMs with Coarse-to-Fine "
            "Activation Information",
            "COLING 2025",
            "https://arxiv.org/abs/2409.13199",
        ),
        params=SigmoidParams,
        needs=frozenset({"influence"}),
    ),
    MethodEntry(
        "allocator",
        "linear",
        "a layer's fraction moves with its centred importance (Adapt-Pruner, in one step)",
        Paper(
            "Wang et al.",
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
        "evolution of widths by the real loss, from uniform and global on (EvoPress)",
        Paper(
            "Sieberling et al.",
            "EvoPress: Accurate Dynamic Model Compression via Evolutionary Search",
            "ICML 2025",
            "https://arxiv.org/abs/2410.14649",
        ),
        params=SearchParams,
    ),
    MethodEntry(
        "recovery",
        "distill",
        "all weights of the body, trained towards the dense base's distributions",
        Paper(
            "Hinton et al.",
            "Distilling the Knowledge in a Neural Network",
            "2015",
            "https://arxiv.org/abs/1503.02531",
        ),
        params=DistillParams,
    ),
    MethodEntry(
        "recovery",
        "lora",
        "LoRA on every linear, trained on text and merged (LLM-Pruner)",
        Paper(
            "Ma et al.",
            "LLM-Pruner: On the Structural Pruning of Large Language Models",
            "NeurIPS 2023",
            "https://arxiv.org/abs/2305.11627",
        ),
        params=LoraParams,
    ),
    MethodEntry(
        "recovery",
        "lora_distill",
        "LoRA on every linear, trained towards the dense base's distributions and merged",
        Paper(
            "Hinton et al.",
            "Distilling the Knowledge in a Neural Network",
            "2015",
            "https://arxiv.org/abs/1503.02531",
        ),
        params=LoraDistillParams,
    ),
    MethodEntry(
        "recovery",
        "norms",
        "norms and biases alone, trained on text (PERP)",
        Paper(
            "Zimmer et al.",
            "PERP: Rethinking the Prune-Retrain Paradigm in the Era of LLMs",
            "arXiv 2023",
            "https://arxiv.org/abs/2312.15230",
        ),
        params=TrainingParams,
    ),
    MethodEntry(
        "recovery",
        "closed_form",
        "least-squares refit of o_proj and down_proj, layer by layer (FASP)",
        Paper(
            "Hu et al.",
            "FASP: Fast and Accurate Structured Pruning of Large Language Models",
            "arXiv 2025",
            "https://arxiv.org/abs/2501.09412",
        ),
        params=ClosedFormParams,
        from_dense=True,
    ),
    MethodEntry(
        "merge",
        "lego",
        "clusters of atoms, each centroid a new atom (LoRA-LEGO)",
        Paper(
            "Zhao et al.",
            "Merging LoRAs like Playing LEGO: Pushing the Modularity of LoRA to Extremes "
            "Through Rank-Wise Clustering",
            "ICLR 2025",
            "https://arxiv.org/abs/2409.16167",
        ),
        params=LegoParams,
    ),
    MethodEntry(
        "merge",
        "cat",
        "all atoms side by side: the weighted sum, rank Σ r",
        Paper(
            "Prabhakar et al.",
            "LoRA Soups: Merging LoRAs for Practical Skill Composition Tasks",
            "COLING 2025",
            "https://arxiv.org/abs/2410.13025",
        ),
    ),
    MethodEntry(
        "merge",
        "linear",
        "the weighted sum with as few atoms as it takes, no cross terms",
        Paper(
            "Ilharco et al.",
            "Editing Models with Task Arithmetic",
            "ICLR 2023",
            "https://arxiv.org/abs/2212.04089",
        ),
    ),
    MethodEntry(
        "merge",
        "svd",
        "the best approximation of the weighted sum of a given rank",
        Paper(
            "Eckart and Young",
            "The approximation of one matrix by another of lower rank",
            "Psychometrika 1936",
            "https://doi.org/10.1007/BF02288367",
        ),
        params=RankParams,
    ),
    MethodEntry(
        "merge",
        "ties",
        "trim, elect a sign per entry of ΔW, average those that have it",
        Paper(
            "Yadav et al.",
            "TIES-Merging: Resolving Interference When Merging Models",
            "NeurIPS 2023",
            "https://arxiv.org/abs/2306.01708",
        ),
        params=SparseParams,
    ),
    MethodEntry(
        "merge",
        "dare_linear",
        "drop entries of each ΔW at random, rescale, add",
        Paper(
            "Yu et al.",
            "Language Models are Super Mario: Absorbing Abilities from Homologous Models as "
            "a Free Lunch",
            "ICML 2024",
            "https://arxiv.org/abs/2311.03099",
        ),
        params=SparseParams,
    ),
    MethodEntry(
        "merge",
        "dare_ties",
        "drop entries of each ΔW at random, rescale, elect signs, average",
        Paper(
            "Yu et al.",
            "Language Models are Super Mario: Absorbing Abilities from Homologous Models as "
            "a Free Lunch",
            "ICML 2024",
            "https://arxiv.org/abs/2311.03099",
        ),
        params=SparseParams,
    ),
    MethodEntry(
        "merge",
        "magnitude_prune",
        "add up the largest entries of each ΔW",
        Paper(
            "Han et al.",
            "Learning both Weights and Connections for Efficient Neural Networks",
            "NeurIPS 2015",
            "https://arxiv.org/abs/1506.02626",
        ),
        params=SparseParams,
    ),
    MethodEntry(
        "merge",
        "knots",
        "TIES in the left singular vectors that all adapters share",
        Paper(
            "Stoica et al.",
            "Model Merging with SVD to Tie the Knots",
            "ICLR 2025",
            "https://arxiv.org/abs/2410.19735",
        ),
        params=SparseParams,
    ),
    MethodEntry(
        "compress",
        "svd",
        "the best approximation of a rank, or of a share of the energy",
        Paper(
            "Eckart and Young",
            "The approximation of one matrix by another of lower rank",
            "Psychometrika 1936",
            "https://doi.org/10.1007/BF02288367",
        ),
        params=TruncationParams,
    ),
    MethodEntry(
        "compress",
        "darex",
        "drop atoms or entries at random, rescale by what changes the output least",
        Paper(
            "Deng et al.",
            "DARE the Extreme: Revisiting Delta-Parameter Pruning For Fine-Tuned Models",
            "ICLR 2025",
            "https://arxiv.org/abs/2410.09344",
        ),
        params=DarexParams,
        needs_rows=True,
    ),
    MethodEntry(
        "compress",
        "dylora",
        "a ladder of ranks from one adapter",
        Paper(
            "Valipour et al.",
            "DyLoRA: Parameter-Efficient Tuning of Pre-trained Models using Dynamic "
            "Search-Free Low-Rank Adaptation",
            "EACL 2023",
            "https://arxiv.org/abs/2210.07558",
        ),
        params=LadderParams,
    ),
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
)
CATALOGUE: dict[tuple[Kind, str], MethodEntry] = {(e.kind, e.name): e for e in ENTRIES}


def names(kind: Kind) -> list[str]:
    """The methods of a kind, in alphabetical order."""
    return sorted(name for k, name in CATALOGUE if k == kind)


def resolve(kind: Kind, method: Method) -> tuple[MethodEntry, Params]:
    """The method that a recipe names, and its parameters with the defaults filled in.

    Raises InvalidInput for an unknown method, an unknown parameter or an invalid value.
    """
    entry = CATALOGUE.get((kind, method.name))
    if entry is None:
        raise InvalidInput(
            f"{kind}.name",
            f"there is no {kind} {method.name!r}; choose one of: {', '.join(names(kind))}",
            code=f"unknown_{kind}",
        )
    try:
        return entry, entry.params.model_validate(method.params)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([kind, "params", *map(str, first["loc"])])
        known = ", ".join(entry.params.model_fields) or "none"
        raise InvalidInput(
            where,
            f"{first['msg']}; parameters of {method.name}: {known}",
        ) from None
