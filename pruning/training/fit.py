"""What the trained recovery methods have in common: which parameters move, and the loop around."""

from collections.abc import Callable
from typing import Any

from torch import nn

from pruning.methods.recovery import TrainingParams
from pruning.progress import Progress
from pruning.registry import RecoveryContext
from pruning.training.data import training_split
from pruning.training.losses import Loss
from pruning.training.trainer import Outcome, train


def choose(model: nn.Module, wanted: Callable[[str], bool]) -> None:
    """Let the parameters whose names are `wanted` be trained, and no others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(wanted(name))


def fit(
    model: Any, loss: Loss, params: TrainingParams, context: RecoveryContext, progress: Progress
) -> Outcome:
    """Train what can be trained of the model, on the training text of the recipe."""
    moving = {name: p for name, p in model.named_parameters() if p.requires_grad}
    data = training_split(context.spec, params.held_out)
    return train(moving, loss, data, params, context.spec.recipe.seed, context.state, progress)
