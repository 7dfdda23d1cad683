"""Methods that train adapters: ranks, initialisations, forms and hooks."""

from typing import Literal

from pydantic import Field

from pruning.methods.criteria import CFSP
from pruning.methods.entry import MethodEntry, Paper, Params


class DataParams(Params):
    """Of methods that look at training rows before the first step."""

    rows: int = Field(64, ge=1, le=100_000)  # of the training rows that it looks at


class FlexoraParams(DataParams):
    keep: float = Field(0.5, gt=0, le=1)  # of the layers
    steps: int = Field(20, ge=1, le=100_000)  # of the search
    learning_rate: float = Field(3e-3, gt=0)  # of the factors
    rate: float = Field(1.0, gt=0)  # of the layers' numbers


class CfspRanksParams(DataParams):
    pass


class EvaParams(DataParams):
    rho: float = Field(2.0, ge=1, le=64)  # times the rank, the most that a linear may get
    tau: float = Field(0.99, gt=0, lt=1)  # similarity at which components have converged


class LoraGaParams(DataParams):
    gamma: float = Field(16.0, gt=0)  # B is multiplied by outputs^¼ / √gamma


class CordaParams(DataParams):
    mode: Literal["ipm", "kpm"] = "ipm"  # previews the task, or preserves knowledge


class LoraXsParams(Params):
    deviation: float = Field(1e-5, ge=0)  # of the core's entries


class LoraSbParams(DataParams):
    size: float = Field(1.0, gt=0)  # times the first step of the optimizer


class NystromParams(Params):
    tolerance: float = Field(1e-2, gt=0, lt=1)  # relative, of the pseudo-inverse


class CoreParams(Params):
    train: Literal["core", "all"] = "core"  # all: the factors as well


class GatedParams(Params):
    shrink: float = Field(0.7, ge=0)  # by how much a gate goes down in the whole training


class NestedParams(Params):
    frozen: bool = False  # train the last of the drawn atoms alone


class NolaParams(Params):
    bases: int = Field(64, ge=1, le=65536)  # of each factor


class RandloraParams(Params):
    gain: float = Field(20.0, gt=0)  # in the place of alpha / rank


class GrowableParams(Params):
    begin: int = Field(1, ge=1)  # atoms of each linear at first
    mean: float | None = Field(None, gt=0)  # atoms of a linear in the end; half of the rank
    every: int = Field(5, ge=1)  # steps between growths
    until: float = Field(0.7, gt=0, le=1)  # of the steps


class AlloraParams(Params):
    eta: float = Field(10.0, gt=0)  # the factor of a row of B that is zero


class GgpoParams(Params):
    sigma: float = Field(0.03, ge=0)  # of a row of the weight
    beta: float = Field(0.01, ge=0)  # of the squared length of its last gradient


class DarexParams(Params):
    decay: float = Field(0.01, gt=0)  # of the squared length of ΔW, in the loss


class GroupLassoParams(Params):
    strength: float = Field(1.0, gt=0)  # of the sum of the lengths of groups, in the loss
    group: Literal["linear", "block"] = "linear"  # factors that vanish together


_LORA = Paper(
    "Hu et al.",
    "LoRA: Low-Rank Adaptation of Large Language Models",
    "ICLR 2022",
    "https://arxiv.org/abs/2106.09685",
)

ENTRIES = (
    MethodEntry("ranks", "uniform", "the same rank for every linear", _LORA),
    MethodEntry(
        "ranks",
        "flexora",
        "only the layers that a short search on held-out rows asks for (Flexora)",
        Paper(
            "Wei et al.",
            "Flexora: Flexible Low-Rank Adaptation for Large Language Models",
            "ACL 2025",
            "https://arxiv.org/abs/2408.10774",
        ),
        params=FlexoraParams,
    ),
    MethodEntry(
        "ranks",
        "cfsp",
        "in proportion to how far a layer turns the hidden states (CFSP)",
        CFSP,
        params=CfspRanksParams,
    ),
    MethodEntry("init", "lora", "A uniform, B zero", _LORA),
    MethodEntry(
        "init",
        "eva",
        "A along what inputs vary in; ranks go where the most variance is explained",
        Paper(
            "Paischer et al.",
            "Parameter Efficient Fine-tuning via Explained Variance Adaptation",
            "NeurIPS 2025",
            "https://arxiv.org/abs/2410.07170",
        ),
        params=EvaParams,
    ),
    MethodEntry(
        "init",
        "lora_ga",
        "singular vectors of the first gradient",
        Paper(
            "Wang et al.",
            "LoRA-GA: Low-Rank Adaptation with Gradient Approximation",
            "NeurIPS 2024",
            "https://arxiv.org/abs/2407.05000",
        ),
        params=LoraGaParams,
    ),
    MethodEntry(
        "init",
        "pissa",
        "the principal singular vectors of the weight",
        Paper(
            "Meng et al.",
            "PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large "
            "Language Models",
            "NeurIPS 2024",
            "https://arxiv.org/abs/2404.02948",
        ),
    ),
    MethodEntry(
        "init",
        "olora",
        "the first columns of Q and rows of R of the weight",
        Paper(
            "Büyükakyüz",
            "OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models",
            "arXiv 2024",
            "https://arxiv.org/abs/2406.01775",
        ),
    ),
    MethodEntry(
        "init",
        "corda",
        "singular vectors of the weight times the covariance of its inputs",
        Paper(
            "Yang et al.",
            "CorDA: Context-Oriented Decomposition Adaptation of Large Language Models",
            "NeurIPS 2024",
            "https://arxiv.org/abs/2406.05223",
        ),
        params=CordaParams,
    ),
    MethodEntry(
        "init",
        "lora_xs",
        "the weight's singular vectors around a core near zero, for form core",
        Paper(
            "Bałazy et al.",
            "LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters",
            "ECAI 2025",
            "https://arxiv.org/abs/2405.17604",
        ),
        params=LoraXsParams,
    ),
    MethodEntry(
        "init",
        "lora_sb",
        "the first step of full fine-tuning, of low rank, for form core",
        Paper(
            "Ponkshe et al.",
            "Initialization using Update Approximation is a Silver Bullet for Extremely "
            "Efficient Low-Rank Fine-Tuning",
            "arXiv 2024",
            "https://arxiv.org/abs/2411.19557",
        ),
        params=LoraSbParams,
    ),
    MethodEntry(
        "init",
        "nystrom",
        "the first columns and rows of the weight and the inverse of where they cross (NLoRA)",
        Paper(
            "Guo et al.",
            "NLoRA: Nyström-Initiated Low-Rank Adaptation for Large Language Models",
            "arXiv 2025",
            "https://arxiv.org/abs/2502.14482",
        ),
        params=NystromParams,
    ),
    MethodEntry(
        "init",
        "loldu",
        "the weight's LDU factors, for form diagonal",
        Paper(
            "Shi et al.",
            "LoLDU: Low-Rank Adaptation via Lower-Diag-Upper Decomposition for "
            "Parameter-Efficient Fine-Tuning",
            "arXiv 2024",
            "https://arxiv.org/abs/2410.13618",
        ),
    ),
    MethodEntry("form", "plain", "both factors", _LORA),
    MethodEntry(
        "form",
        "core",
        "a square between factors that stay (LoRA-XS, LoRA-SB, IntTune), or all three (NLoRA)",
        Paper(
            "Bałazy et al.",
            "LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters",
            "ECAI 2025",
            "https://arxiv.org/abs/2405.17604",
        ),
        params=CoreParams,
    ),
    MethodEntry(
        "form",
        "diagonal",
        "a diagonal between factors that stay, and one number",
        Paper(
            "Shi et al.",
            "LoLDU: Low-Rank Adaptation via Lower-Diag-Upper Decomposition for "
            "Parameter-Efficient Fine-Tuning",
            "arXiv 2024",
            "https://arxiv.org/abs/2410.13618",
        ),
    ),
    MethodEntry(
        "form",
        "gated",
        "a gate for each atom that may shrink to zero; such atoms are not served (SoRA)",
        Paper(
            "Ding et al.",
            "Sparse Low-rank Adaptation of Pre-trained Language Models",
            "EMNLP 2023",
            "https://arxiv.org/abs/2311.11696",
        ),
        params=GatedParams,
    ),
    MethodEntry(
        "form",
        "growable",
        "one atom for each linear at first, more where they matter (IncreLoRA)",
        Paper(
            "Zhang et al.",
            "IncreLoRA: Incremental Parameter Allocation Method for Parameter-Efficient "
            "Fine-tuning",
            "arXiv 2023",
            "https://arxiv.org/abs/2308.12043",
        ),
        params=GrowableParams,
    ),
    MethodEntry(
        "form",
        "nested",
        "every prefix of the atoms an adapter of its own (DyLoRA)",
        Paper(
            "Valipour et al.",
            "DyLoRA: Parameter-Efficient Tuning of Pre-trained Models using Dynamic "
            "Search-Free Low-Rank Adaptation",
            "EACL 2023",
            "https://arxiv.org/abs/2210.07558",
        ),
        params=NestedParams,
    ),
    MethodEntry(
        "form",
        "nola",
        "coefficients of random factors",
        Paper(
            "Koohpayegani et al.",
            "NOLA: Compressing LoRA using Linear Combination of Random Basis",
            "ICLR 2024",
            "https://arxiv.org/abs/2310.02556",
        ),
        params=NolaParams,
    ),
    MethodEntry(
        "form",
        "randlora",
        "diagonals around random factors of full rank",
        Paper(
            "Albert et al.",
            "RandLoRA: Full-rank parameter-efficient fine-tuning of large models",
            "ICLR 2025",
            "https://arxiv.org/abs/2502.00987",
        ),
        params=RandloraParams,
    ),
    MethodEntry(
        "hook",
        "allora",
        "larger steps for the short rows of B",
        Paper(
            "Huang and Balestriero",
            "ALLoRA: Adaptive Learning Rate Mitigates LoRA Fatal Flaws",
            "arXiv 2024",
            "https://arxiv.org/abs/2410.09692",
        ),
        params=AlloraParams,
    ),
    MethodEntry(
        "hook",
        "ggpo",
        "noise on the weight, as large as rows and their gradients (LoRA-GGPO)",
        Paper(
            "Chang et al.",
            "LoRA-GGPO: Mitigating Double Descent in LoRA Fine-Tuning via Gradient-Guided "
            "Perturbation Optimization",
            "arXiv 2025",
            "https://arxiv.org/abs/2502.14538",
        ),
        params=GgpoParams,
    ),
    MethodEntry(
        "hook",
        "darex_l2",
        "ΔW is kept short, so that most of it may be dropped",
        Paper(
            "Deng et al.",
            "DARE the Extreme: Revisiting Delta-Parameter Pruning For Fine-Tuned Models",
            "ICLR 2025",
            "https://arxiv.org/abs/2410.09344",
        ),
        params=DarexParams,
    ),
    MethodEntry(
        "hook",
        "group_lasso",
        "linears, or blocks, whose factors may vanish altogether (GS-LoRA)",
        Paper(
            "Zhao et al.",
            "Continual Forgetting for Pre-trained Vision Models",
            "CVPR 2024",
            "https://arxiv.org/abs/2403.11530",
        ),
        params=GroupLassoParams,
    ),
)
