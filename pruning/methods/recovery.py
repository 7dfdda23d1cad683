"""Recovery methods: what repairs a slim base."""

from typing import Literal

from pydantic import Field, model_validator

from pruning.methods.entry import MethodEntry, Paper, Params


class ClosedFormParams(Params):
    damping: float = Field(0.01, gt=0, le=1)  # of the mean of the Gram's diagonal
    # layer: what the dense weights make of the slim inputs; stream: nearer to the dense states
    goal: Literal["layer", "stream"] = "layer"
    writers: bool = False  # q, k, v, gate and up too, by one map of what a block's writers read
    # sequences that the dense base, whole in memory, writes on from the calibration text
    self_calibration: int = Field(0, ge=0, le=65536)
    memory_gib: float = Field(8.0, gt=0)  # the largest base, in float32, that is held so

    @property
    def most_memory_gib(self) -> float | None:
        return self.memory_gib if self.self_calibration else None

    @model_validator(mode="after")
    def _writers_need_a_guide(self) -> "ClosedFormParams":
        if self.writers and self.goal == "layer":
            raise ValueError("writers are refit towards the dense states; give goal stream")
        return self


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


class LisaParams(TrainingParams):
    layers: int = Field(2, ge=1)  # that train at a time
    every: int = Field(20, ge=1)  # steps until others are drawn


class OwloreParams(LisaParams):
    rank: int = Field(32, ge=1)  # of the subspace that gradients are projected to
    scale: float = Field(0.25, gt=0)  # of steps within it
    outlier: float = Field(13.0, gt=0)  # times the mean, what counts as an outlier


_PERP = Paper(
    "Zimmer et al.",
    "PERP: Rethinking the Prune-Retrain Paradigm in the Era of LLMs",
    "arXiv 2023",
    "https://arxiv.org/abs/2312.15230",
)

ENTRIES = (
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
        _PERP,
        params=TrainingParams,
    ),
    MethodEntry(
        "recovery",
        "masked_lora",
        "LoRA on every linear behind the mask of its weight, norms and biases (PERP)",
        _PERP,
        params=LoraParams,
    ),
    MethodEntry(
        "recovery",
        "lisa",
        "embedding, head and a few layers at a time, drawn anew, trained on text (LISA)",
        Paper(
            "Pan et al.",
            "LISA: Layerwise Importance Sampling for Memory-Efficient Large Language Model "
            "Fine-Tuning",
            "NeurIPS 2024",
            "https://arxiv.org/abs/2403.17919",
        ),
        params=LisaParams,
    ),
    MethodEntry(
        "recovery",
        "owlore",
        "as lisa, layers with outliers more often, their gradients of low rank (OwLore)",
        Paper(
            "Li et al.",
            "OwLore: Outlier-weighed Layerwise Sampled Low-Rank Projection for "
            "Memory-Efficient LLM Fine-tuning",
            "arXiv 2024",
            "https://arxiv.org/abs/2405.18380",
        ),
        params=OwloreParams,
    ),
    MethodEntry(
        "recovery",
        "align",
        "all weights but the output head, trained on text (the alignment of LoRAM)",
        Paper(
            "Zhang et al.",
            "Train Small, Infer Large: Memory-Efficient LoRA Training for Large Language Models",
            "ICLR 2025",
            "https://arxiv.org/abs/2502.13533",
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
)
