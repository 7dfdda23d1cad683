"""The catalogue of methods: names, papers and parameters (torch-free; registry has the code)."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pruning.errors import InvalidInput
from pruning.recipe import Method

Kind = Literal["criterion", "allocator", "recovery"]
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
