"""LoRA behind the mask of the weight, with norms and biases: zeros of the base stay zeros.

Zimmer et al., "PERP: Rethinking the Prune-Retrain Paradigm in the Era of LLMs", arXiv 2023,
https://arxiv.org/abs/2312.15230, section 3.2 (MaskLoRA): W + (W ≠ 0) ⊙ (alpha / rank) · B · A, so
that a base with single weights pruned, such as 2 of 4, is as sparse after it was merged.
"""

# Shape suffixes:  R = atoms,  I = inputs and  O = outputs of the linear.

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pruning.adapters.merging import seed_of
from pruning.adapters.train.starts import kaiming
from pruning.evaluation import load
from pruning.methods.recovery import LoraParams
from pruning.progress import Progress
from pruning.recovery.norms import is_norm_or_bias
from pruning.registry import RecoveryContext
from pruning.training.fit import choose, fit
from pruning.training.losses import next_token
from pruning.weights.rewriting import rewrite


class Masked(nn.Module):
    """What stands in the place of a weight; B is zero at first."""

    def __init__(self, weight_OI: Tensor, params: LoraParams, generator: torch.Generator):
        super().__init__()
        outputs, inputs = weight_OI.shape
        self.a_RI = nn.Parameter(kaiming(params.rank, inputs, generator).to(weight_OI.device))
        self.b_OR = nn.Parameter(weight_OI.new_zeros(outputs, params.rank))
        self._scale = params.alpha / params.rank

    def forward(self, weight_OI: Tensor) -> Tensor:
        return weight_OI + (weight_OI != 0) * (self._scale * self.b_OR @ self.a_RI)


def recover(context: RecoveryContext, params: LoraParams, progress: Progress) -> None:
    """Needs memory for the slim base in float32, and its linears once more in a step."""
    model = load(context.source)
    choose(model, is_norm_or_bias)
    linears = masked(model, params, context.spec.recipe.seed)
    fit(model, next_token(model), params, context, progress)
    for linear in linears:
        parametrize.remove_parametrizations(linear, "weight")
    rewrite(context.source, context.destination, model.state_dict().__getitem__)


def masked(model: Any, params: LoraParams, seed: int) -> list[nn.Linear]:
    """The linears of the layers, each with factors of its own behind its mask."""
    linears = []
    for name, linear in model.model.layers.named_modules():
        if isinstance(linear, nn.Linear):
            generator = torch.Generator().manual_seed(seed_of(seed, name))
            masked = Masked(linear.weight.data, params, generator)
            parametrize.register_parametrization(linear, "weight", masked)
            linears.append(linear)
    return linears
