"""Scores, against numbers small enough to check by hand."""

import pytest
import torch
from torch import Tensor

from pruning import registry
from pruning.geometry import Geometry, Layer
from pruning.recipe import Method
from pruning.registry import LayerScores, LayerView
from pruning.stats import Moments, Saliency, Statistics

# one query head of two channels per KV group, two groups; three FFN channels; hidden size two
GEOMETRY = Geometry("llama", 8, 2, 2, True, False, (Layer(2, 2, 3),) * 2)
WEIGHTS = {
    "q_proj": torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 0.0]]),
    "k_proj": torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, -3.0], [0.0, 0.0]]),
    "v_proj": torch.tensor([[0.0, 0.0], [0.0, -1.0], [0.0, 0.0], [0.0, 0.0]]),
    "o_proj": torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, -2.0, 0.0, 1.0]]),
    "gate_proj": torch.tensor([[3.0, 0.0], [0.0, 0.0], [1.0, -1.0]]),
    "up_proj": torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 2.0]]),
    "down_proj": torch.tensor([[4.0, 0.0, 1.0], [0.0, 1.0, -1.0]]),
}


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def score(name: str, statistics: Statistics | None = None, seed: int = 0, **params: str):
    function, _, checked = registry.criterion(Method(name=name, params=params))
    view = LayerView(GEOMETRY, 0, WEIGHTS, statistics or Statistics(), seed)
    return function(view, checked)


def as_lists(scores: LayerScores) -> tuple[list[float], list[float]]:
    assert scores.kv_group.dtype == scores.ffn_channel.dtype == torch.float64
    return scores.kv_group.tolist(), scores.ffn_channel.tolist()


def test_magnitude_l1_adds_up_all_weights_of_a_unit():
    # group 0: q 1+1, k 1+1, v 1, o 1+2; group 1: q 2, k 3, o 2+1
    assert as_lists(score("magnitude", norm="l1")) == ([8.0, 8.0], [7.0, 3.0, 6.0])


def test_magnitude_l2_is_the_norm_of_all_weights_of_a_unit():
    groups, channels = as_lists(score("magnitude"))
    assert groups == pytest.approx([10**0.5, 18**0.5])
    assert channels == pytest.approx([5.0, 3**0.5, 8**0.5])


def saliency(element: Tensor, vector: Tensor) -> Saliency:
    return Saliency(element, vector)


TAYLOR = Statistics(
    saliency={
        (0, "q_proj"): saliency(numbers(1, 2, 3, 4), numbers(-1, 0, 3, -4)),
        (0, "k_proj"): saliency(numbers(1, 1, 1, 1), numbers(1, -1, 0, 0)),
        (0, "v_proj"): saliency(numbers(0, 0, 2, 2), numbers(0, 0, -2, 2)),
        (0, "o_proj"): saliency(numbers(5, 0, 0, 5), numbers(-5, 0, 0, 1)),
        (0, "gate_proj"): saliency(numbers(1, 2, 3), numbers(-1, 0, 3)),
        (0, "up_proj"): saliency(numbers(1, 1, 1), numbers(0, 1, -1)),
        (0, "down_proj"): saliency(numbers(2, 0, 4), numbers(2, 0, -1)),
    }
)


def test_taylor_element_adds_up_the_saliency_of_every_member():
    assert as_lists(score("taylor", TAYLOR)) == ([10.0, 18.0], [4.0, 3.0, 8.0])


def test_taylor_vector_lets_signs_cancel_within_a_row_or_column_only():
    found = as_lists(score("taylor", TAYLOR, variant="vector"))
    assert found == ([8.0, 12.0], [3.0, 1.0, 5.0])


def test_fluctuation_is_variance_times_squared_column_norm_averaged_over_a_head():
    statistics = Statistics(
        moments={
            (0, "o_proj"): Moments(3, numbers(9, 9, 9, 9), numbers(2, 4, 0, 8)),
            (0, "down_proj"): Moments(5, numbers(0, 0, 0), numbers(4, 8, 12)),
        }
    )
    # o_proj: variances 1, 2, 0, 4 times 1, 4, 4, 1; down_proj: 1, 2, 3 times 16, 1, 2
    assert as_lists(score("fluctuation", statistics)) == ([4.5, 2.0], [16.0, 2.0, 6.0])


def test_fluctuation_does_not_see_the_mean():
    def at(mean: float) -> Statistics:
        samples = torch.tensor([[1.0], [2.0], [4.0]]) + mean
        return Statistics(
            moments={
                (0, "o_proj"): Moments.of(samples.expand(3, 4)),
                (0, "down_proj"): Moments.of(samples.expand(3, 3)),
            }
        )

    for here, there in zip(
        as_lists(score("fluctuation", at(0))), as_lists(score("fluctuation", at(64))), strict=True
    ):
        assert here == pytest.approx(there)


def test_random_scores_follow_the_seed_and_nothing_else():
    assert as_lists(score("random", seed=1)) == as_lists(score("random", seed=1))
    assert as_lists(score("random", seed=1)) != as_lists(score("random", seed=2))


def test_random_scores_differ_from_layer_to_layer():
    function, _, params = registry.criterion(Method(name="random"))
    views = [LayerView(GEOMETRY, layer, WEIGHTS, Statistics(), 0) for layer in (0, 1)]
    first, second = (function(view, params) for view in views)
    assert first.ffn_channel.tolist() != second.ffn_channel.tolist()
