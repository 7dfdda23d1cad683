"""A short distillation of a carried adapter: its atoms learn what the dense base does with it.

Hinton et al., "Distilling the Knowledge in a Neural Network", 2015,
https://arxiv.org/abs/1503.02531.  The teacher is the dense base with the adapter as it was, the
student the slim base with the adapter as carried; nothing but the atoms moves.
"""

# Shape suffixes:  B = sequences of a batch,  T = tokens,  V = vocabulary,  N = tokens that count.

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div
from torch.nn.utils import clip_grad_norm_

from pruning.adapters.own_text import OwnText
from pruning.progress import Progress
from pruning.recipe import AdapterDistillation
from pruning.training.course import Course, Parameters
from pruning.training.data import MICRO_TOKENS, drawn
from pruning.training.trainer import rate_factor

HELD_OUT, MOST_HELD_OUT = 0.1, 32  # of the sequences, to judge by
CHECKS = 5  # how often it is judged, and its state saved
WARMUP = 0.1  # of the steps


def distill(
    student: Any,
    teacher: Any,
    text: OwnText,
    params: AdapterDistillation,
    seed: int,
    state: Path,
    progress: Progress,
) -> None:
    """Train the student's LoRA factors in place, and leave the best that were found.

    Best on held-out sequences, the untrained ones included.  What is in `state` survives a kill,
    which costs the steps since the last check.
    """
    atoms = {name: p for name, p in student.named_parameters() if "lora_" in name}
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name in atoms)
    training, held_out = _split(len(text.ids_ST))
    loss = _Loss(student, teacher, text)
    course = Course.resume(state, atoms, 0.0)
    course = course or Course.begin(atoms, 0.0, loss.without_gradient(held_out))
    rows = max(1, round(params.batch_tokens * len(text.ids_ST) / max(1, text.num_tokens)))
    order = [training[i] for i in drawn(len(training), params.steps * rows, seed)]
    every = -(-params.steps // CHECKS)
    while course.step < params.steps:
        batch = order[course.step * rows :][:rows]
        rate = params.learning_rate * rate_factor(course.step, params.steps, WARMUP)
        _step(course.optimizer, atoms, rate, loss, batch)
        course.step += 1
        if course.step % every == 0 or course.step == params.steps:
            course.judge(loss.without_gradient(held_out))
            course.save(state)
        progress(course.step / params.steps, f"step {course.step} of {params.steps}")
    course.return_to_best()


def _split(count: int) -> tuple[list[int], list[int]]:
    """Which sequences are trained on and which judge; the only one of a text does both."""
    num_held_out = min(MOST_HELD_OUT, max(1, round(HELD_OUT * count)))
    held_out = [i * count // num_held_out for i in range(num_held_out)]
    return sorted(set(range(count)) - set(held_out)) or held_out, held_out


class _Loss:
    """KL(teacher ‖ student) per token that counts, as the tokens weigh."""

    def __init__(self, student: Any, teacher: Any, text: OwnText):
        self.student, self.teacher, self.text = student, teacher, text

    def pieces(self, numbers: Sequence[int]) -> list[OwnText]:
        """Sequences, short ones first, in pieces of at most MICRO_TOKENS, or one sequence."""
        chosen = self.text.select(numbers).by_length()
        rows = max(1, MICRO_TOKENS // chosen.ids_ST.shape[1])
        every = range(len(numbers))
        return [chosen.select(every[i : i + rows]) for i in every[::rows]]

    def __call__(self, piece: OwnText) -> Tensor:
        """Summed over the piece."""
        counts_BT = piece.weights_ST > 0
        with torch.no_grad():
            teacher_NV = _log_probabilities(self.teacher, piece.ids_ST, counts_BT)
        student_NV = _log_probabilities(self.student, piece.ids_ST, counts_BT)
        each_N = kl_div(student_NV, teacher_NV, reduction="none", log_target=True).sum(dim=1)
        return each_N @ piece.weights_ST[counts_BT].to(each_N.device)

    @torch.no_grad()
    def without_gradient(self, numbers: Sequence[int]) -> float:
        """The mean over these sequences."""
        pieces = self.pieces(numbers)
        return sum(float(self(piece)) for piece in pieces) / weight_of(pieces)


def weight_of(pieces: Sequence[OwnText]) -> float:
    """Of all tokens together."""
    return sum(float(piece.weights_ST.sum()) for piece in pieces)


def _step(
    optimizer: torch.optim.Optimizer,
    atoms: Parameters,
    rate: float,
    loss: _Loss,
    batch: Sequence[int],
) -> None:
    optimizer.zero_grad()
    pieces = loss.pieces(batch)
    whole = weight_of(pieces)
    for piece in pieces:
        torch.autograd.backward(loss(piece) / whole)
    clip_grad_norm_(atoms.values(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


def _log_probabilities(model: Any, ids_BT: Tensor, counts_BT: Tensor) -> Tensor:
    """Of the next token, where a token counts; (N, V)."""
    ids_BT = ids_BT.to(model.device)
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
    found: Tensor = logits_BTV[counts_BT.to(model.device)].log_softmax(dim=-1)
    return found
