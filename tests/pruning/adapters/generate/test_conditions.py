"""Task vectors: which task a request is nearest to, and when it is too far from all."""

import pytest
import torch

from pruning import evaluation
from pruning.adapters.generate.conditions import Conditions, states_of_rows, states_of_text
from pruning.errors import InvalidInput
from pruning.text import load_tokenizer


def around(center: list[float], seed: int, count: int = 40) -> torch.Tensor:
    noise = torch.randn(count, len(center), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(center) + 0.5 * noise


@pytest.fixture
def known() -> Conditions:
    """Two tasks, at (0, 4) and at (4, 0)."""
    return Conditions.learn([around([0.0, 4.0], 0), around([4.0, 0.0], 1)], seed=0)[0]


def test_demonstrations_of_a_task_are_nearest_to_it_and_within_reach(known: Conditions):
    for task, center in enumerate(([0.0, 4.0], [4.0, 0.0])):
        for seed in range(10, 30):
            vector = known.vector(around(center, seed, count=6))
            nearest, distance = known.nearest(vector)
            assert nearest == task
            assert distance < known.radius


def test_what_lies_between_two_tasks_or_beyond_them_is_out_of_reach(known: Conditions):
    for center in ([2.0, 2.0], [-4.0, 8.0], [8.0, 8.0]):
        assert known.nearest(known.vector(around(center, 3)))[1] > known.radius


def test_the_sets_that_training_sees_lie_within_the_radius_and_one_lies_on_it():
    known, sets = Conditions.learn([around([0.0], 0), around([9.0], 1)], seed=5)
    assert sets.shape == (2, 256, 1)
    distances = (sets - known.vectors_Th[:, None]).square().mean(dim=2).sqrt()
    assert float(distances.max()) == known.radius


def test_demonstrations_that_are_all_alike_leave_no_room():
    known, _ = Conditions.learn([torch.zeros(8, 3), torch.ones(8, 3)], seed=0)
    assert known.radius == pytest.approx(0, abs=1e-6)


def test_the_state_of_a_row_is_that_of_its_last_token_alone(dense_base):
    base = dense_base("llama")
    model, tokenizer = evaluation.load(base), load_tokenizer(base)
    rows = [([256, 10, 11, 257], 2), ([256, 10, 11, 12], 2)]  # the second was cut: closed by eos
    found = states_of_rows(model, tokenizer, rows)
    assert found.shape == (2, 32)
    assert torch.equal(found[0], found[1])
    other = states_of_rows(model, tokenizer, [([256, 10, 13, 257], 2)])
    assert not torch.allclose(other[0], found[0])


def test_a_text_has_a_state_for_each_token_and_none_is_refused(dense_base):
    base = dense_base("llama")
    model, tokenizer = evaluation.load(base), load_tokenizer(base)
    assert states_of_text(model, tokenizer, "abc", "description").shape == (3, 32)
    with pytest.raises(InvalidInput, match="no tokens"):
        states_of_text(model, tokenizer, "", "description")
