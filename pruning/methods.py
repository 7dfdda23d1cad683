"""The catalogue of methods: names, papers and parameters (torch-free; registry has the code)."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pruning.errors import InvalidInput
from pruning.recipe import Method

Kind = Literal["criterion", "allocator", "recovery", "merge", "compress"]
Statistic = Literal["input_moments", "saliency"]


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


class MagnitudeParams(Params):
    norm: Literal["l1", "l2"] = "l2"


class TaylorParams(Params):
    variant: Literal["element", "vector"] = "element"  # absolute value before or after summing


class GlobalParams(Params):
    # standardize: zero mean and unit deviation per layer and kind, as FLAP does before ranking;
    # auto: where the criterion's scores of different layers are not on one scale
    normalize: Literal["auto", "none", "standardize"] = "auto"


class RankParams(Params):
    rank: int | None = Field(None, ge=1)  # none: that of the largest source


class SparseParams(RankParams):
    density: float = Field(0.5, gt=0, le=1)  # of the entries that stay


class LegoParams(Params):
    k: int | None = Field(None, ge=1)  # clusters per linear; none: the mean rank of the sources
    inertia: float | None = Field(None, gt=0, lt=1)  # instead of k: what clusters may leave of it
    parameter_reweighting: bool = True  # a centroid as long as its members are on average
    output_reweighting: bool = True  # √(rank of the sources / rank of the result)
    feature: Literal["raw", "unit"] = "raw"  # unit: a and b of length one before clustering
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


@dataclass(frozen=True)
class MethodEntry:
    """What can be known of a method without running it."""

    kind: Kind
    name: str
    summary: str
    paper: Paper
    params: type[Params] = Params
    needs: frozenset[Statistic] = frozenset()  # what the calibration pass must collect for it
    comparable: bool = True  # whether scores of different layers are on one scale
    needs_rows: bool = False  # whether it looks at outputs of the base on an adapter's own rows


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
        needs=frozenset({"saliency"}),
    ),
    MethodEntry(
        "criterion",
        "fluctuation",
        "variance of a unit's activations times the weights that read it (FLAP)",
        Paper(
            "An et al.",
            "Fluctuation-based Adaptive Structured Pruning for Large Language Models",
            "AAAI 2024",
            "https://arxiv.org/abs/2312.11983",
        ),
        needs=frozenset({"input_moments"}),
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
        where = ".".join(str(part) for part in first["loc"])
        known = ", ".join(entry.params.model_fields) or "none"
        raise InvalidInput(
            f"{kind}.params.{where}",
            f"{first['msg']}; parameters of {method.name}: {known}",
        ) from None
