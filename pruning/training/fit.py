"""What the trained recovery methods have in common: which parameters move, and the loop around."""

from collections.abc import Callable
from typing import Any

from torch import nn

from pruning.methods.recovery import TrainingParams
from pruning.progress import Progress
from pruning.registry import RecoveryContext
from pruning.training.data import training_split
from pruning.training.losses import Loss
from pruning.training.trainer import Outcome, Steps, train


def choose(model: nn.Module, wanted: Callable[[str], bool]) -> None:
    """Let the parameters whose names are `wanted` be trained, and no others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(wanted(name))


def fit(
    model: Any,
    loss: Loss,
    params: TrainingParams,
    context: RecoveryContext,
    progress: Progress,
    around: Steps | None = None,
) -> Outcome:
    """Train what can be trained of the model, on the training text of the recipe.

    With something `around` the steps, all parameters belong to the course: it may free and freeze.
    """
    moving = {name: p for name, p in model.named_parameters() if p.requires_grad or around}
    data = training_split(context.spec, params.held_out)
    seed = context.spec.recipe.seed
    return train(moving, loss, data, params, seed, context.state, progress, around)
