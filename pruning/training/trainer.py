"""The training loop: a budget of tokens, AdamW, early stopping; killed and run again, same weights.

AdamW: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019,
https://arxiv.org/abs/1711.05101.  The rate rises linearly, then falls linearly to zero.
"""

# Shape suffixes:  S = sequences,  T = tokens,  B = sequences of a batch.

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from pruning.errors import InvalidInput
from pruning.methods.recovery import TrainingParams
from pruning.progress import Progress
from pruning.training.course import Course, Parameters
from pruning.training.data import Split, drawn, micro_batches
from pruning.training.losses import Loss


@dataclass(frozen=True)
class Outcome:
    """What a training did; losses are those of the held-out sequences."""

    tokens: int
    steps: int
    loss_before: float
    loss_after: float


@dataclass(frozen=True)
class Steps:
    """What is done around each step of the optimizer; `before` is told its number, from 0."""

    before: Callable[[int], None] = lambda step: None
    after: Callable[[], None] | None = None


def train(
    parameters: Parameters,
    loss: Loss,
    data: Split,
    params: TrainingParams,
    seed: int,
    state: Path,
    progress: Progress,
    around: Steps | None = None,
) -> Outcome:
    """Train `parameters` in place, and leave them as they were when the held-out loss was least.

    Where something changes them `around` the steps, after each, they stay as they are at the end,
    and no loss ends the training early.

    Takes whole sequences, as many as `params.tokens` pays for; InvalidInput when that is none.
    The course is saved in `state` at every check of the held-out loss and taken up from there.
    """
    order, around = _order(data, params, seed), around or Steps()
    num_steps = math.ceil(len(order) / params.batch)
    every = math.ceil(num_steps / params.checks)
    course = Course.resume(state, parameters, params.weight_decay)
    if course is None:
        course = Course.begin(parameters, params.weight_decay, held_out_loss(loss, data))
    while course.step < num_steps and (around.after or course.checks_in_vain < params.patience):
        batch = order[course.step * params.batch : (course.step + 1) * params.batch]
        rate = params.learning_rate * rate_factor(course.step, num_steps, params.warmup)
        around.before(course.step)
        course.drop_frozen()
        found = _step(course, loss, data.training_ST[batch], rate, params.clip)
        if around.after:
            around.after()
        course.step += 1
        if course.step % every == 0 or course.step == num_steps:
            course.judge(held_out_loss(loss, data))
            course.save(state)
        progress(course.step / num_steps, _words(course, num_steps, found))
    if around.after is None:
        course.return_to_best()
    num_sequences = min(course.step * params.batch, len(order))
    tokens = num_sequences * data.training_ST.shape[1]
    return Outcome(tokens, course.step, course.first_loss, course.best_loss)


def rate_factor(step: int, num_steps: int, warmup: float) -> float:
    """What the learning rate of a step, counted from 0, is to the highest one."""
    rising = math.ceil(warmup * num_steps)
    if step < rising:
        return (step + 1) / rising
    return (num_steps - step) / (num_steps - rising)


@torch.no_grad()
def held_out_loss(loss: Loss, data: Split) -> float:
    """Mean loss over the held-out sequences."""
    pieces = micro_batches(data.held_out_ST)
    return sum(share * float(loss(ids_BT)) for ids_BT, share in pieces)


def _order(data: Split, params: TrainingParams, seed: int) -> list[int]:
    num_sequences, length = data.training_ST.shape
    if params.tokens < length:
        raise InvalidInput(
            "recovery.params.tokens", f"less than one sequence; give {length} or more"
        )
    return drawn(num_sequences, params.tokens // length, seed)


def _step(course: Course, loss: Loss, ids_BT: Tensor, rate: float, clip: float) -> float:
    """One step of the optimizer; the loss before it."""
    course.optimizer.zero_grad()
    total = 0.0
    for piece_BT, share in micro_batches(ids_BT):
        part = loss(piece_BT) * share
        torch.autograd.backward(part)
        total += float(part.detach())
    clip_grad_norm_(course.parameters.values(), clip)
    for group in course.optimizer.param_groups:
        group["lr"] = rate
    course.optimizer.step()
    return total


def _words(course: Course, num_steps: int, loss: float) -> str:
    return (
        f"step {course.step} of {num_steps}: loss {loss:.4f}, held out {course.best_loss:.4f} "
        f"(at first {course.first_loss:.4f})"
    )
