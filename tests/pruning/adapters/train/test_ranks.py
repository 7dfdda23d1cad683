"""Ranks shared out among layers: by the angle that they turn states by, and by a search."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from pruning import evaluation
from pruning.adapters.ranks import cfsp, flexora
from pruning.adapters.ranks.cfsp import portions
from pruning.adapters.train.recipes import TrainSpec
from pruning.adapters.train.tuned import Site
from pruning.errors import InvalidInput
from pruning.evaluation import Example, padded
from pruning.methods.training import CfspRanksParams, FlexoraParams

KEYS = tuple((layer, linear) for layer in range(4) for linear in ("down_proj", "q_proj"))


@pytest.fixture
def site(dense_base: Callable[[str], Path], examples: list[Example]) -> Site:
    """All four layers of the tiny Llama, some rows to look at."""
    model = evaluation.load(dense_base("llama"))
    batches = [padded(examples[i : i + 4]) for i in range(0, 32, 4)]
    return Site(model, dict.fromkeys(KEYS, 4), 2.0, batches, 0, 0.001)


def silence(model: Any, layer: int) -> None:
    """Let the linears of a layer see nothing, so that whatever is done to them changes nothing."""
    for norm in ("input_layernorm", "post_attention_layernorm"):
        model.model.layers[layer].get_submodule(norm).weight.data.zero_()


@pytest.mark.parametrize(
    ("weights", "total", "expected"),
    [
        ([1.0, 1.0, 2.0], 8, [2, 2, 4]),  # one each, then 1.25, 1.25 and 2.5 of five
        ([1.0, 1.0, 2.0], 3, [1, 1, 1]),
        ([0.0, 0.0], 4, [2, 2]),
        ([0.0, 1.0], 4, [1, 3]),
    ],
)
def test_portions_are_whole_and_add_up(weights: list[float], total: int, expected: list[int]):
    assert portions(weights, total) == expected


def test_a_layer_that_turns_nothing_gets_the_least_rank_and_the_others_have_it(site: Site):
    silence(site.model, 2)
    angles = cfsp.importance(site)
    assert angles[2] == pytest.approx(0, abs=1e-4)
    ranks = cfsp.share(site, CfspRanksParams())
    assert ranks[2, "q_proj"] == ranks[2, "down_proj"] == 1
    assert sum(ranks.values()) == 4 * len(KEYS)
    by_angle = sorted(range(4), key=lambda layer: angles[layer])
    assert [ranks[layer, "q_proj"] for layer in by_angle] == sorted(
        ranks[layer, "q_proj"] for layer in range(4)
    )


def test_a_layer_whose_adapters_change_nothing_is_not_kept(site: Site):
    silence(site.model, 1)
    before = {name: p.clone() for name, p in site.model.named_parameters()}
    ranks = flexora.share(site, FlexoraParams(keep=0.75, steps=6))
    assert {layer for layer, _ in ranks} == {0, 2, 3}
    assert set(ranks.values()) == {4}
    after = dict(site.model.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(hasattr(module, "lora_A") for module in site.model.modules())


def test_the_numbers_of_layers_move_down_the_gradient_of_the_rows_that_judge(site: Site):
    """Where only one layer is there to choose from, nothing can move: the numbers add up."""
    alone = replace(site, ranks={(3, "q_proj"): 4})
    assert flexora.search(alone, [3], FlexoraParams(steps=2)) == {3: 0.0}
    alphas = flexora.search(site, [0, 1, 2, 3], FlexoraParams(steps=6))
    assert sum(alphas.values()) == pytest.approx(0, abs=1e-5)
    assert len(set(alphas.values())) == 4


def test_a_search_needs_rows_that_judge(site: Site):
    with pytest.raises(InvalidInput, match="more rows"):
        flexora.share(replace(site, batches=site.batches[:1]), FlexoraParams())


def test_eva_shares_ranks_out_itself(training: Callable[..., TrainSpec]):
    with pytest.raises(ValidationError, match="leave ranks out"):
        training(ranks={"name": "cfsp"}, init={"name": "eva"})
