"""A few layers at a time: who is drawn, what is kept of the others, and projected gradients."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from pruning import evaluation
from pruning.methods.recovery import LisaParams, OwloreParams
from pruning.recovery.owlore import Projected, outlier_ratios
from pruning.training.course import Course
from pruning.training.losses import next_token
from pruning.training.sampled import Sampling


@pytest.fixture
def model(dense_base: Callable[[str], Path]) -> nn.Module:
    return evaluation.load(dense_base("llama"))


def test_layers_take_turns_as_their_chances_say(model: nn.Module):
    sampling = Sampling(model, LisaParams(layers=2, every=5), [1.0, 1.0, 1.0, 0.0], seed=0)
    turns = [sampling.drawn(step) for step in range(0, 600, 5)]
    assert all(sampling.drawn(5 * i + 4) == turn for i, turn in enumerate(turns))
    assert {len(turn) for turn in turns} == {2}
    counts = Counter(layer for turn in turns for layer in turn)
    assert set(counts) == {0, 1, 2}
    assert min(counts.values()) > 60  # of 80 on average


def test_moments_are_held_for_what_trains_and_for_nothing_else(model: nn.Module, ids: torch.Tensor):
    parameters = dict(model.named_parameters())
    course = Course.begin(parameters, 0.0, 1.0)
    sampling = Sampling(model, LisaParams(layers=1, every=1), [1.0] * 4, seed=3)
    for step in range(3):
        sampling.before(step)
        course.drop_frozen()
        course.optimizer.zero_grad()
        next_token(model)(ids).backward()
        course.optimizer.step()
        (layer,) = sampling.drawn(step)
        held = {name for name, p in parameters.items() if course.optimizer.state.get(p)}
        outside = {"model.embed_tokens.weight", "model.norm.weight"}
        inside = {name for name in parameters if name.startswith(f"model.layers.{layer}.")}
        assert held == outside | inside


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_the_steps_are_those_of_adam_on_the_projected_gradient(shape: tuple[int, int]):
    """GaLore by its definition: R = UᵀG, Adam on R, and back by U; scaled."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator)
    target = torch.randn(shape, generator=generator)
    projected = Projected(weight, OwloreParams(rank=2, scale=0.5))
    projected.begin(weight - target)
    ours = torch.optim.AdamW([projected.steps_RK], lr=0.1, weight_decay=0.0, eps=1e-12)
    basis = projected.basis.detach()
    whole, small = weight.clone(), nn.Parameter(torch.zeros_like(projected.steps_RK))
    theirs = torch.optim.AdamW([small], lr=0.1, weight_decay=0.0, eps=1e-12)
    for _ in range(3):
        ours.zero_grad()
        ((projected(weight) - target).square().sum() / 2).backward()
        ours.step()
        gradient = whole - target
        before = small.detach().clone()
        small.grad = basis.T @ (gradient if projected.left else gradient.T)
        theirs.step()
        step = basis @ (small.detach() - before)
        whole += 0.5 * (step if projected.left else step.T)
    assert torch.allclose(projected(weight), whole, atol=1e-5)
    projected.fold(weight)
    assert torch.allclose(weight, whole, atol=1e-5)
    projected.steps_RK.requires_grad_(False)
    assert projected(weight) is weight  # until the next turn, nothing else is held


def test_outliers_are_counted_by_weight_times_input(model: nn.Module, ids: torch.Tensor):
    for layer in model.model.layers:
        for linear in (m for m in layer.modules() if isinstance(m, nn.Linear)):
            linear.weight.data.fill_(0.01)
    weight = model.model.layers[2].mlp.gate_proj.weight  # 48 times 32
    weight.data[:4] = 10.0
    ratios = outlier_ratios(model, ids, 5.0)
    assert ratios[:2] + ratios[3:] == [0.0, 0.0, 0.0]
    assert ratios[2] > 0
