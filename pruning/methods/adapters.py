"""Methods on adapters alone: merges and compressions."""

from typing import Literal

from pydantic import Field, model_validator

from pruning.methods.entry import MethodEntry, Paper, Params


class RankParams(Params):
    rank: int | None = Field(None, ge=1)  # none: that of the largest source


class SparseParams(RankParams):
    density: float = Field(0.5, gt=0, le=1)  # of the entries that stay


class LegoParams(Params):
    k: int | None = Field(None, ge=1)  # clusters per linear; none: the mean rank of the sources
    inertia: float | None = Field(None, gt=0, lt=1)  # instead of k: what clusters may leave of it
    parameter_reweighting: bool = True  # a centroid as long as its members are on average
    output_reweighting: bool = True  # √(rank of the sources / rank of the result)
    feature: Literal["unit", "raw", "product"] = "product"  # what is clustered; paper: raw
    centroid: Literal["rank_one", "mean"] = "rank_one"  # of a cluster; mean in the paper
    fit: int = Field(3, ge=0, le=100)  # ours: rounds of least squares towards the sources' mean
    energy: bool = True  # ours: ΔW as long as that mean
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


ENTRIES = (
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
