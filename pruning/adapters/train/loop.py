"""The loop: steps on batches of rows, checks on validation rows, a course that survives a kill.

Whatever is random is drawn by the seed and the step, so that a training that was taken up again
ends with the same bytes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import relu
from torch.nn.utils import clip_grad_norm_

from pruning.adapters.quality import silent
from pruning.adapters.train.recipes import Check, Hyperparameters
from pruning.adapters.train.tuned import Around, Batch, Tuned, count, summed_loss
from pruning.evaluation import Example, completion_loss, padded
from pruning.progress import Measured, Progress
from pruning.training.course import Course
from pruning.training.data import MICRO_TOKENS, drawn
from pruning.training.trainer import rate_factor


@dataclass(frozen=True)
class Lesson:
    """Rows to learn from, and others to judge by."""

    training: Sequence[Example]
    validation: Sequence[Example]


@dataclass(frozen=True)
class Unlearning:
    """Rows to forget: weight · max(0, bound - their loss) is added to the loss.

    Zhao et al., "Continual Forgetting for Pre-trained Vision Models", CVPR 2024,
    https://arxiv.org/abs/2403.11530, equation 5; there the loss is that of classes.
    """

    lesson: Lesson
    weight: float
    bound: float

    def cost(self, loss: Tensor) -> Tensor:
        """Of a loss on rows that are to be forgotten."""
        return self.weight * relu(self.bound - loss)


@dataclass(frozen=True)
class Outcome:
    """What a training did; losses are those that were judged by."""

    steps: int
    best_step: int
    first_loss: float
    best_loss: float
    curve: tuple[Check, ...]


def fit(
    tuned: Tuned,
    around: Sequence[Around],
    lesson: Lesson,
    params: Hyperparameters,
    seed: int,
    state: Path,
    progress: Progress,
    unlearning: Unlearning | None = None,
) -> Outcome:
    """Train the factors in place, and leave them as they were when the validation loss was least.

    Or as they are at the end, without stopping early, where one of `around` says so.  The course
    is saved in `state` at every check and taken up from there.
    """
    num_steps = params.num_steps(len(lesson.training))
    every = math.ceil(num_steps / params.checks)
    batches = _Batches(lesson, unlearning, params.batch_size, num_steps, seed)
    judged = _Judge(tuned.model, lesson, unlearning)
    extras = {f"{i}.{name}": t for i, one in enumerate(around) for name, t in one.state.items()}
    parameters, decay = tuned.parameters, params.weight_decay
    course = Course.resume(state, parameters, decay, extras)
    if course is None:
        course = Course.begin(parameters, decay, judged(), extras)
    elif course.notes:  # of which a kill may have kept the last one from being told
        progress(course.step / num_steps, _measured(course, num_steps))
    keeps_last = any(one.keeps_last for one in around)
    since_check: list[float] = []
    while course.step < num_steps and (keeps_last or course.checks_in_vain < params.patience):
        rate = params.learning_rate * rate_factor(course.step, num_steps, params.warmup)
        loss = _step(tuned, course, around, batches, rate, params.clip)
        since_check.append(loss)
        course.step += 1
        words: str = _words(course, num_steps, loss)
        if course.step % every == 0 or course.step == num_steps:
            course.judge(judged())
            mean = sum(since_check) / len(since_check)
            course.notes.append(
                Check(step=course.step, training=mean, validation=course.last_loss).model_dump()
            )
            since_check.clear()
            course.save(state)
            words = _measured(course, num_steps)
        progress(course.step / num_steps, words)
    if not keeps_last:
        course.return_to_best()
    curve = tuple(Check.model_validate(note) for note in course.notes)
    return _outcome(course, curve, keeps_last)


class _Batches:
    """Which rows a step takes: whole passes over them, each shuffled anew."""

    def __init__(
        self, lesson: Lesson, unlearning: Unlearning | None, size: int, num_steps: int, seed: int
    ):
        self._lesson, self._size = lesson, size
        self.unlearning = unlearning
        self._order = drawn(len(lesson.training), size * num_steps, seed)
        if unlearning:
            self._forget_order = drawn(len(unlearning.lesson.training), size * num_steps, seed)

    def learnt(self, step: int) -> list[Example]:
        return [self._lesson.training[i] for i in self._order[step * self._size :][: self._size]]

    def forgotten(self, step: int) -> list[Example]:
        if self.unlearning is None:
            return []
        numbers = self._forget_order[step * self._size :][: self._size]
        return [self.unlearning.lesson.training[i] for i in numbers]


class _Judge:
    """The loss on validation rows, of what is learnt and of what shall be forgotten."""

    def __init__(self, model: Any, lesson: Lesson, unlearning: Unlearning | None):
        self._model, self._lesson, self._unlearning = model, lesson, unlearning

    def __call__(self) -> float:
        loss = completion_loss(self._model, self._lesson.validation, silent)
        if self._unlearning is None:
            return loss
        kept = completion_loss(self._model, self._unlearning.lesson.validation, silent)
        return loss + float(self._unlearning.cost(torch.tensor(kept)))


def _step(
    tuned: Tuned,
    course: Course,
    around: Sequence[Around],
    batches: _Batches,
    rate: float,
    clip: float,
) -> float:
    """One step of the optimizer; the loss on the rows that are learnt, before it."""
    for one in around:
        one.before(course.step)
    course.optimizer.zero_grad()
    loss = _backward(tuned.model, batches.learnt(course.step))
    if batches.unlearning:
        _forget(tuned.model, batches.forgotten(course.step), batches.unlearning)
    for one in around:
        if (penalty := one.penalty()) is not None:
            torch.autograd.backward(penalty)
    clip_grad_norm_(course.parameters.values(), clip)
    for group in course.optimizer.param_groups:
        group["lr"] = rate
    course.optimizer.step()
    for one in around:
        one.after(rate)
    return loss


def _backward(model: Any, rows: Sequence[Example], factor: float = 1.0) -> float:
    """Add the gradient of factor · the mean loss of some rows; that mean."""
    pieces = list(_pieces(rows))
    tokens, total = sum(map(count, pieces)), 0.0
    for piece in pieces:
        loss = summed_loss(model, piece) / tokens
        torch.autograd.backward(factor * loss)
        total += float(loss.detach())
    return total


def _forget(model: Any, rows: Sequence[Example], unlearning: Unlearning) -> None:
    """Add the gradient of what it costs that these rows are not forgotten."""
    pieces = list(_pieces(rows))
    with torch.no_grad():
        loss = sum(float(summed_loss(model, p)) for p in pieces) / sum(map(count, pieces))
    if loss < unlearning.bound:  # beyond it, the gradient is zero
        _backward(model, rows, -unlearning.weight)


def _pieces(rows: Sequence[Example]) -> Iterator[Batch]:
    """Rows, padded, in pieces of at most MICRO_TOKENS or of one row."""
    longest = max(len(ids) for ids, _ in rows)
    size = max(1, MICRO_TOKENS // longest)
    for start in range(0, len(rows), size):
        yield padded(rows[start : start + size])


def _outcome(course: Course, curve: tuple[Check, ...], keeps_last: bool) -> Outcome:
    steps = {check.validation: check.step for check in reversed(curve)}
    best = course.last_loss if keeps_last else course.best_loss
    return Outcome(course.step, steps.get(best, 0), course.first_loss, best, curve)


def _words(course: Course, num_steps: int, loss: float) -> str:
    return (
        f"step {course.step} of {num_steps}: loss {loss:.4f}, validation {course.last_loss:.4f} "
        f"(at first {course.first_loss:.4f}, best {course.best_loss:.4f})"
    )


def _measured(course: Course, num_steps: int) -> Measured:
    """The last check, named as OpenAI's events of fine-tuning name such numbers."""
    check = Check.model_validate(course.notes[-1])
    return Measured(
        _words(course, num_steps, check.training),
        step=check.step,
        total_steps=num_steps,
        train_loss=check.training,
        valid_loss=check.validation,
    )
