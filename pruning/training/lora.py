"""LoRA as a way to train: factors on every linear of the body, and their sum in the weights.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022,
https://arxiv.org/abs/2106.09685.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from pruning.geometry import Geometry


class LoraSize(Protocol):
    """What parameters must tell of the factors to make."""

    @property
    def rank(self) -> int: ...

    @property
    def alpha(self) -> float: ...


def with_lora(model: Any, params: LoraSize, seed: int, linears: Sequence[str] | None = None) -> Any:
    """The model with new factors, B zero and A drawn by the seed; nothing else can be trained.

    On all linears of the body, or those named.
    """
    torch.manual_seed(seed)
    if linears is None:
        linears = Geometry.from_config(model.config.to_dict()).architecture.linears
    config = LoraConfig(r=params.rank, lora_alpha=params.alpha, target_modules=list(linears))
    return get_peft_model(model, config)


def merged(model: Any) -> dict[str, Tensor]:
    """The tensors of the base with W + (alpha / rank) · B · A in the place of each W."""
    tensors: dict[str, Tensor] = model.merge_and_unload().state_dict()
    return tensors
