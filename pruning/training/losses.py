"""What a training minimises: the surprise of the next token, or the distance to a teacher."""

# Shape suffixes:  B = sequences,  T = tokens,  V = vocabulary.

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

Loss = Callable[[Tensor], Tensor]  # token ids (B, T) → mean over their tokens, in nats; a scalar


def next_token(model: Any) -> Loss:
    """The cross entropy of each token but the first, given those before it."""

    def loss(ids_BT: Tensor) -> Tensor:
        logits_BTV = _logits(model, ids_BT)[:, :-1]
        targets_BT = ids_BT[:, 1:].to(logits_BTV.device)
        return cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())

    return loss


def distillation(student: Any, teacher: Any, temperature: float) -> Loss:
    """How far the student's next-token distributions are from the teacher's; see `divergence`."""

    def loss(ids_BT: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_BTV = _logits(teacher, ids_BT)
        return divergence(_logits(student, ids_BT), teacher_BTV, temperature)

    return loss


def divergence(student_BTV: Tensor, teacher_BTV: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), the mean over all tokens.

    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015,
    https://arxiv.org/abs/1503.02531; the factor keeps the size of gradients whatever T is.
    """
    log_p, log_q = (
        (logits_BTV / temperature).log_softmax(dim=-1).flatten(0, 1)
        for logits_BTV in (teacher_BTV, student_BTV)
    )
    return temperature**2 * kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def _logits(model: Any, ids_BT: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids_BT.to(model.device), use_cache=False).logits
    return logits
