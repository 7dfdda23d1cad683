"""A generator in a file: it makes what it was trained on from conditions, and nothing else."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pruning.adapters.algebra import Bag
from pruning.adapters.generate.generator import Generator, Trained, train_generator
from pruning.adapters.generate.recipes import Network

SHAPES = {(layer, linear): (6, 5) for layer in range(3) for linear in ("q_proj", "v_proj")}
SMALL = Network(latent=2, width=48, steps=800, batch=24, learning_rate=5e-3)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def family(task: int) -> list[dict[tuple[int, str], Bag]]:
    """Checkpoints of one adapter, a little apart; b is much smaller than a."""
    return [
        {
            key: Bag(
                normal(100 * task + i, 2, 5) + 0.02 * normal(9 * step + i, 2, 5),
                0.01 * normal(100 * task + 50 + i, 6, 2),
            )
            for i, key in enumerate(SHAPES)
        }
        for step in range(4)
    ]


def states(task: int) -> torch.Tensor:
    return normal(task, 8) * 3 + normal(1000 + task, 20, 8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_generator(
        {f"task{i}": family(i) for i in range(3)},
        {"examples": [states(i) for i in range(3)]},
        SMALL,
        0,
        tmp_path_factory.mktemp("state"),
        lambda fraction, message: None,
    )


@pytest.fixture(scope="module")
def saved(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("generator") / "generator.safetensors"
    trained.generator.save(path)
    return path


@pytest.fixture
def away() -> Callable[[Generator, int, int], float]:
    """How far what a condition gives is from a task's last checkpoint: of ΔW, relative."""

    def measure(generator: Generator, condition: int, task: int) -> float:
        vector = generator.conditions["examples"].vectors_Th[condition]
        made = generator.make("examples", vector, generator.latents(1, 0)[0])
        wanted = family(task)[-1]
        gaps = [(made[key].delta - wanted[key].delta).norm() for key in SHAPES]
        return float(sum(gaps) / sum(bag.delta.norm() for bag in wanted.values()))

    return measure


def test_the_right_condition_gives_the_adapter_of_its_task_and_a_wrong_one_another(saved, away):
    generator = Generator.load(saved)
    for task in range(3):
        assert away(generator, task, task) < 0.1
        assert away(generator, (task + 1) % 3, task) > 0.5


def test_what_is_read_makes_what_was_saved_but_for_rounding(saved, trained):
    read, vector = Generator.load(saved), trained.generator.conditions["examples"].vectors_Th[1]
    assert read.tasks == ("task0", "task1", "task2")
    assert read.layout == trained.generator.layout
    z = read.latents(2, 7)[1]
    made, again = trained.generator.make("examples", vector, z), read.make("examples", vector, z)
    for key, bag in made.items():
        torch.testing.assert_close(again[key].delta, bag.delta, rtol=0.05, atol=1e-3)


def test_the_file_holds_nothing_that_only_training_needs(saved, trained):
    generator = trained.generator
    most = generator.basis.steps_HN.numel() + 2 * generator.normalisation.mean_LN.numel()
    most += 2 * generator.parameters + 4096 + 4 * (3 * 2 + 3 + 3) * 8
    assert saved.stat().st_size < most
    assert generator.parameters < sum(p.numel() for p in generator.vae.parameters())


def test_the_first_sample_is_the_mode_and_the_others_are_drawn_by_the_seed(trained):
    drawn = trained.generator.latents(3, 1)
    assert drawn.shape == (3, 3, 2)
    assert not drawn[0].any()
    assert torch.equal(drawn, trained.generator.latents(3, 1))
    assert not torch.equal(drawn[1:], trained.generator.latents(3, 2)[1:])


def test_the_components_that_separate_the_tasks_explain_nearly_all_of_the_checkpoints(trained):
    assert len(trained.generator.basis.scale_H) == 6  # (tasks - 1) times layers
    assert 0.95 < trained.explained <= 1
