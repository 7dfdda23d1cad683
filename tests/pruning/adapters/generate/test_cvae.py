"""The conditional VAE: its divergence by hand, and a training that a kill does not change."""

from pathlib import Path

import pytest
import torch

from pruning.adapters.generate.cvae import ConditionalVae, Lesson, divergence, train_vae
from pruning.adapters.generate.recipes import Network

SIZE = Network(components=3, latent=2, width=32, steps=300, batch=16, kl_weight=1e-3)


def test_the_divergence_of_a_known_gaussian():
    zeros = torch.zeros(5, 2)
    assert float(divergence(zeros, zeros)) == 0
    assert float(divergence(torch.ones(5, 2), zeros)) == pytest.approx(1.0)  # ½ · 1² twice
    halved = torch.full((5, 2), 0.5).log()
    assert float(divergence(zeros, halved)) == pytest.approx(0.5 - 1 - torch.log(torch.tensor(0.5)))


@pytest.fixture
def lesson() -> Lesson:
    """Two tasks of two layers; coefficients tell both, conditions the task alone."""
    coefficients = torch.tensor([[1.0, 0, 0], [0, 1, 0], [-1, 0, 1], [0, -1, 1]])
    sets = torch.stack([torch.full((9, 4), 1.0), torch.full((9, 4), -1.0)])
    return Lesson(
        coefficients,
        torch.tensor([0, 1, 0, 1]),
        torch.tensor([0, 0, 1, 1]),
        {"examples": sets, "description": 2 * sets},
    )


def new_vae() -> ConditionalVae:
    torch.manual_seed(0)
    return ConditionalVae(SIZE, 3, 4, 2, ("description", "examples"))


def silent(fraction: float, message: str) -> None:
    assert 0 <= fraction <= 1


@pytest.mark.parametrize(("kind", "length"), [("examples", 1.0), ("description", 2.0)])
def test_what_was_learnt_is_decoded_from_either_kind_of_condition(
    kind: str, length: float, lesson: Lesson, tmp_path: Path
):
    vae = new_vae()
    train_vae(vae, lesson, SIZE, 0, tmp_path, silent)
    layers = torch.tensor([0, 1])
    with torch.no_grad():
        for task, sign in enumerate((1.0, -1.0)):
            context = vae.context(kind, torch.full((2, 4), sign * length), layers)
            found = vae.decode(torch.zeros(2, 2), context)
            wanted = lesson.coefficients_XH[2 * task : 2 * task + 2]
            assert float((found - wanted).abs().max()) < 0.25


def test_stopped_and_begun_again_the_training_ends_with_the_same_weights(
    lesson: Lesson, tmp_path: Path
):
    whole, stopped = new_vae(), new_vae()
    (tmp_path / "whole").mkdir()
    (tmp_path / "stopped").mkdir()
    train_vae(whole, lesson, SIZE, 0, tmp_path / "whole", silent)

    def stop(fraction: float, message: str) -> None:
        if fraction > 0.55:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_vae(stopped, lesson, SIZE, 0, tmp_path / "stopped", stop)
    again = new_vae()
    train_vae(again, lesson, SIZE, 0, tmp_path / "stopped", silent)
    for name, weight in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
