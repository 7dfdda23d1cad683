"""Losses against numbers worked out by hand."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pruning import evaluation
from pruning.training.losses import distillation, divergence, next_token


def logits(*rows: list[float]) -> torch.Tensor:
    """Logits whose softmax is the given distribution; (1, tokens, vocabulary)."""
    return torch.tensor([list(rows)]).log()


def test_the_divergence_is_the_mean_of_kl_over_tokens():
    teacher = logits([0.5, 0.5], [0.25, 0.75])
    student = logits([0.25, 0.75], [0.25, 0.75])
    # ½ ln(½ / ¼) + ½ ln(½ / ¾) = ½ ln(4/3) at the first token, nothing at the second
    expected = (0.5 * math.log(4 / 3) + 0) / 2
    assert float(divergence(student, teacher, 1.0)) == pytest.approx(expected, rel=1e-6)


def test_temperature_flattens_both_sides_and_scales_the_loss_by_its_square():
    teacher, student = logits([0.1, 0.9]), logits([0.5, 0.5])
    # at T = 2 the odds 9 become 3: p = (¼, ¾)
    expected = 4 * (0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5))
    assert float(divergence(student, teacher, 2.0)) == pytest.approx(expected, rel=1e-6)


def test_a_base_is_at_no_distance_from_itself_and_sends_no_gradient_into_its_teacher(
    dense_base: Callable[[str], Path], ids: torch.Tensor
):
    student, teacher = (evaluation.load(dense_base("llama")) for _ in range(2))
    assert float(distillation(student, teacher, 1.0)(ids).detach()) == pytest.approx(0, abs=1e-6)
    student.model.norm.weight.data += 0.1
    loss = distillation(student, teacher, 1.0)(ids)
    loss.backward()
    assert float(loss.detach()) > 1e-4
    assert student.model.norm.weight.grad.abs().sum() > 0
    assert teacher.model.norm.weight.grad is None


def test_the_loss_of_the_next_token_is_the_one_that_evaluation_measures(
    dense_base: Callable[[str], Path], ids: torch.Tensor
):
    model = evaluation.load(dense_base("qwen3"))
    examples = [(row.tolist(), 1) for row in ids]
    measured = evaluation.completion_loss(model, examples, lambda fraction, message: None)
    assert float(next_token(model)(ids).detach()) == pytest.approx(measured, rel=1e-5)
