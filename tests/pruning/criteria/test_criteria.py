"""Scores, against numbers small enough to check by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pruning import registry
from pruning.errors import InvalidInput
from pruning.geometry import Geometry, Layer
from pruning.recipe import Method
from pruning.registry import LayerScores, LayerView
from pruning.statistics.absolute import AbsoluteMeans
from pruning.statistics.gradients import Saliency, SequenceGradients
from pruning.statistics.lora import LoraSaliency
from pruning.statistics.moments import Moments
from pruning.statistics.released import ReleasedFluctuation
from pruning.statistics.relevance import Relevance
from pruning.statistics.zeroth import ZerothOrder
from pruning.stats import Statistics

# one query head of two channels per KV group, two groups; three FFN channels; hidden size two
GEOMETRY = Geometry("llama", 8, 2, 2, True, (Layer(2, 2, 3),) * 2)
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


def score(
    name: str, statistics: Statistics | None = None, seed: int = 0, **params: str | float
) -> LayerScores:
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


def test_entropy_scores_as_taylor_does_from_the_saliency_of_the_entropy():
    statistics = Statistics(entropy_saliency=TAYLOR.saliency)
    assert as_lists(score("entropy", statistics)) == as_lists(score("taylor", TAYLOR))


SEQUENCES = Statistics(
    moments={
        (0, "q_proj"): Moments(4, numbers(1, 0), numbers(0, 16)),  # root mean squares 1, 2
        (0, "gate_proj"): Moments(4, numbers(2, 0), numbers(0, 4)),  # 2, 1
        (0, "o_proj"): Moments(4, numbers(1, 1, 3, 0), numbers(0, 0, 0, 4)),  # 1, 1, 3, 1
        (0, "down_proj"): Moments(4, numbers(0, -3, 2), numbers(4, 0, 0)),  # 1, 3, 2
    },
    sequence_gradients={
        (0, linear): SequenceGradients(
            second_C=torch.arange(width, dtype=torch.float64),
            mix_C=torch.arange(width, dtype=torch.float64) / 2,
            l1_C=torch.ones(width, dtype=torch.float64),
            l2_C=numbers(2, *[0] * (width - 1)),
        )
        for linear, width in {
            "q_proj": 4, "k_proj": 4, "v_proj": 4, "o_proj": 4,
            "gate_proj": 3, "up_proj": 3, "down_proj": 3,
        }.items()
    },
)  # fmt: skip


def test_taylor_of_second_order_adds_up_the_fisher_terms():
    assert as_lists(score("taylor", SEQUENCES, variant="second")) == ([4.0, 20.0], [0.0, 3.0, 6.0])
    assert as_lists(score("taylor", SEQUENCES, variant="mix")) == ([2.0, 10.0], [0.0, 1.5, 3.0])


def test_wanda_is_the_weight_that_reads_a_channel_times_its_root_mean_square():
    # o_proj: columns 1, 2, 2, 1 times 1, 1, 3, 1; down_proj: 4, 1, 2 times 1, 3, 2
    assert as_lists(score("wanda", SEQUENCES)) == ([3.0, 7.0], [4.0, 3.0, 4.0])


def test_wanda_does_not_depend_on_how_much_text_was_seen():
    twice = {key: m.merge(m) for key, m in SEQUENCES.moments.items()}
    assert as_lists(score("wanda", Statistics(moments=twice))) == as_lists(
        score("wanda", SEQUENCES)
    )


def test_gblm_without_gradients_sums_weight_times_input_norm_over_all_members():
    # rows read inputs 1, 2 (attention) or 2, 1 (FFN): group 0: q 1+2, k 3, v 2, o 3;
    # group 1: q 2, k 6, o 7; channels: gate 6, 0, 3; up 0, 3, 2; down 4, 3, 4
    assert as_lists(score("gblm", SEQUENCES, alpha=0)) == ([11.0, 15.0], [10.0, 6.0, 9.0])


def test_gblm_gives_gradients_the_same_sum_as_activations_in_every_linear():
    # l1 is even: the sums of gate 9, up 5, down 11 spread over three channels, 25/3 each
    groups, channels = as_lists(score("gblm", SEQUENCES, norm="l1"))
    assert channels == pytest.approx([10 + 25 / 3, 6 + 25 / 3, 9 + 25 / 3])
    assert groups == pytest.approx([11 + 13, 15 + 13])
    # l2 is all in the first channel
    groups, channels = as_lists(score("gblm", SEQUENCES, norm="l2", alpha=2))
    assert channels == pytest.approx([10 + 50, 6, 9])
    assert groups == pytest.approx([11 + 52, 15])


def test_minitron_is_the_norm_over_sequences_and_channels():
    statistics = Statistics(
        absolute_means={
            (0, "o_proj"): AbsoluteMeans(2, numbers(9, 16, 0, 4)),
            (0, "down_proj"): AbsoluteMeans(2, numbers(1, 25, 0)),
        }
    )
    assert as_lists(score("minitron", statistics)) == ([5.0, 2.0], [1.0, 5.0, 0.0])


def test_cfsp_as_released_is_three_norms_over_the_hidden_size_and_knows_no_weight():
    # 3/H · n_j with H = 2 and n = 1, 3, 2; o_proj alone stands for a KV group: 1/H · Σ n_j
    rms = [1.0, 3.0, 2.0]
    groups, channels = as_lists(score("cfsp", SEQUENCES, variant="released"))
    # matrices with a column of zeros have no share to give: gate and up of channels 1 and 0
    assert channels == pytest.approx([2 / 2 * rms[0], 2 / 2 * rms[1], 3 / 2 * rms[2]])
    assert groups == pytest.approx([1.0, 2.0])


@given(seed=st.integers(0, 2**16), c=st.floats(0, 2), b=st.floats(0, 2))
def test_cfsp_as_released_is_the_same_for_all_weights(seed: int, c: float, b: float):
    generator = torch.Generator().manual_seed(seed)
    weights = {n: torch.randn(w.shape, generator=generator) for n, w in WEIGHTS.items()}
    function, _, params = registry.criterion(
        Method(name="cfsp", params={"variant": "released", "b": b, "c": c})
    )
    scores = function(LayerView(GEOMETRY, 0, weights, SEQUENCES, 0), params)
    expected = 3 / 2 * numbers(1, 3, 2) ** c
    torch.testing.assert_close(scores.ffn_channel, expected)


def test_cfsp_fixed_counts_a_weight_by_its_share_among_the_channels():
    # down times norms: rows (4, 0, 2), (0, 3, 2) → shares 2/3, 0, 1/3 and 0, 3/5, 2/5;
    # up: inputs (0, 1, 0), (0, 1, 2) → 0, 1, 0 and 0, 1/3, 2/3; gate: (3, 0, 1), (0, 0, 1)
    means = [(2 / 3 + 3 / 4) / 2, (3 / 5 + 4 / 3) / 2, (11 / 15 + 2 / 3 + 5 / 4) / 2]
    _, channels = as_lists(score("cfsp", SEQUENCES))
    assert channels == pytest.approx([means[0] * 1, means[1] * 3, means[2] * 2])


def test_fluctuation_as_released_standardises_channels_before_the_mean_over_a_head():
    statistics = Statistics(
        released_fluctuation={
            (0, "o_proj"): ReleasedFluctuation(3, numbers(0, 0, 0, 0), numbers(1, 0.5, 0.25, 0)),
            (0, "down_proj"): ReleasedFluctuation(3, numbers(0, 0, 0), numbers(1, 14, 9)),
        }
    )
    # o_proj: (1, 2, 1, 0)² = 1, 4, 1, 0, mean 1.5, variance 3; down_proj: 16, 14, 18
    groups, channels = as_lists(score("fluctuation", statistics, variant="released"))
    assert groups == pytest.approx([1 / 3**0.5, -1 / 3**0.5])
    assert channels == pytest.approx([0, -1, 1])


def test_relevance_is_added_over_the_channels_of_a_unit_per_target():
    statistics = Statistics(
        relevance={
            (0, "o_proj"): Relevance(2, numbers(1, 3, 4, 0)),
            (0, "down_proj"): Relevance(2, numbers(2, 0, 5)),
        }
    )
    assert as_lists(score("relevance", statistics)) == ([2.0, 2.0], [1.0, 0.0, 2.5])


def test_lora_guided_scores_are_of_norm_one_in_each_linear_before_they_are_added():
    ffn = {"gate_proj": (3, 0, 4), "up_proj": (0, 0, 2), "down_proj": (0, 1, 0)}
    attention = {
        "q_proj": (1, 2, 0, 4),  # 3, 4 by unit
        "k_proj": (0, 0, 0, 0),
        "v_proj": (5, 7, 0, 0),
        "o_proj": (0, 0, 1, 0),
    }
    statistics = Statistics(
        lora_saliency={
            (0, linear): LoraSaliency(numbers(*values))
            for linear, values in (ffn | attention).items()
        }
    )
    groups, channels = as_lists(score("lora_guided", statistics))
    assert channels == pytest.approx([0.6, 1.0, 0.8 + 1])
    assert groups == pytest.approx([0.6 + 1, 0.8 + 1])


def test_ecoflap_spreads_the_sensitivity_of_a_block_as_wanda_says():
    slopes = {"q_proj": 1, "k_proj": 2, "v_proj": 0, "o_proj": 1}
    slopes |= {"gate_proj": 0, "up_proj": 3, "down_proj": 1}
    statistics = Statistics(
        moments=SEQUENCES.moments,
        zeroth_order={
            (0, linear): ZerothOrder(2, torch.tensor(2.0 * slope, dtype=torch.float64))
            for linear, slope in slopes.items()
        },
    )
    # |θ| sums: q 4, k 5, v 1, o 6 of 32 weights; gate 5, up 4, down 7 of 18
    attention, ffn = (4 + 2 * 5 + 6) / 32, (3 * 4 + 7) / 18
    groups, channels = as_lists(score("ecoflap", statistics))
    assert groups == pytest.approx([3 / 5 * attention, 7 / 5 * attention])
    assert channels == pytest.approx([4 * 3 / 11 * ffn, 3 * 3 / 11 * ffn, 4 * 3 / 11 * ffn])


def test_pq_mass_at_its_defaults_is_the_half_norm_over_the_number_of_weights():
    # channel 0: 3, 4 of six weights; channel 1: 1, 1, 1; channel 2: 1, 1, 2, 1, 1
    _, channels = as_lists(score("pq"))
    halves = [3**0.5 + 2, 3, 4 + 2**0.5]
    assert channels == pytest.approx([half**2 / 6 for half in halves])


def test_pq_retains_all_weights_of_an_even_unit_and_one_of_a_unit_with_one():
    weights = {name: torch.zeros_like(weight) for name, weight in WEIGHTS.items()}
    for name in ("gate_proj", "up_proj"):
        weights[name][0] = 0.5
        weights[name][1, 0] = 9.0 if name == "up_proj" else 0.0
    weights["down_proj"][:, 0] = -0.5
    function, _, params = registry.criterion(Method(name="pq", params={"variant": "retained"}))
    scores = function(LayerView(GEOMETRY, 0, weights, Statistics(), 0), params)
    assert scores.ffn_channel.tolist() == pytest.approx([6.0, 1.0, 0.0])


def test_pq_refuses_a_p_that_is_not_below_q():
    with pytest.raises(InvalidInput, match="p must be less than q"):
        registry.criterion(Method(name="pq", params={"p": 1, "q": 1}))


def test_random_scores_follow_the_seed_and_nothing_else():
    assert as_lists(score("random", seed=1)) == as_lists(score("random", seed=1))
    assert as_lists(score("random", seed=1)) != as_lists(score("random", seed=2))


def test_random_scores_differ_from_layer_to_layer():
    function, _, params = registry.criterion(Method(name="random"))
    views = [LayerView(GEOMETRY, layer, WEIGHTS, Statistics(), 0) for layer in (0, 1)]
    first, second = (function(view, params) for view in views)
    assert first.ffn_channel.tolist() != second.ffn_channel.tolist()


def test_obs_charges_a_unit_for_what_the_others_cannot_take_over():
    # o_proj: inputs uncorrelated, of energy 1, so a unit costs its squared weights: 1 + 4, 4 + 1;
    # down_proj: channel 2 is always minus channel 0 and leaves for (almost) nothing, its weights
    # going to channel 0; then channel 1 costs 1, and channel 0 the rest
    down = torch.tensor([[1, 0, -1], [0, 1, 0], [-1, 0, 1]], dtype=torch.float64)
    grams = {(0, "o_proj"): torch.eye(4, dtype=torch.float64), (0, "down_proj"): down}
    groups, channels = as_lists(score("obs", Statistics(grams=grams), damping=1e-6, rounds=3))
    assert groups == pytest.approx([5, 5], rel=1e-4)
    assert channels[2] == pytest.approx(0, abs=1e-4)
    assert channels[1] == pytest.approx(1, rel=1e-4)
    # channel 0 reads with (4, 0) - (1, -1) = (3, 1)
    assert channels[0] == pytest.approx(10, rel=1e-4)
