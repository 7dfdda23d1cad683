"""The profile of an adapter: what of its outputs is constant in a text, how the rest varies."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pruning import evaluation
from pruning.adapters.algebra import Bag
from pruning.adapters.compose.cached import intervals
from pruning.adapters.compose.profile import (
    LAGS,
    Spread,
    _spread,
    high,
    profile,
    read,
    summary,
    write,
)
from pruning.adapters.compose.sums import Exact, adapted

KEY = (1, "down_proj")


@pytest.fixture
def bag() -> Bag:
    generator = torch.manual_seed(0)
    return Bag(torch.randn(3, 10, generator=generator), torch.randn(6, 3, generator=generator))


def test_outputs_that_never_change_are_all_constant(bag: Bag):
    inputs = torch.randn(2, 1, 10).expand(2, 40, 10)
    spread = _spread(bag, inputs)
    expected = (inputs @ bag.a_RI.T @ bag.b_OR.T)[:, 0].square().sum(dim=1).mean()
    assert spread.constant == pytest.approx(float(expected), rel=1e-5)
    assert spread.varying == pytest.approx(0, abs=1e-8)
    assert spread.high == pytest.approx(0, abs=1e-8)


def test_outputs_that_alternate_have_all_power_in_the_highest_frequency(bag: Bag):
    signs = torch.tensor([1.0, -1.0]).repeat(32)
    spread = _spread(bag, signs[None, :, None] * torch.randn(1, 1, 10))
    assert spread.constant == pytest.approx(0, abs=1e-8)
    assert spread.high == pytest.approx(1)
    assert spread.correlation_L[:4].tolist() == pytest.approx([1, -1, 1, -1])


def test_energies_and_correlations_are_those_of_the_outputs(bag: Bag):
    inputs = torch.randn(4, 50, 10).cumsum(dim=1)
    outputs = (inputs @ bag.a_RI.T @ bag.b_OR.T).double()
    varying = outputs - outputs.mean(dim=1, keepdim=True)
    spread = _spread(bag, inputs)
    energy = varying.square().sum(dim=2).mean()
    assert spread.varying == pytest.approx(float(energy), rel=1e-4)
    assert len(spread.correlation_L) == LAGS
    for lag in (1, 5, 31):
        products = (varying[:, lag:] * varying[:, : 50 - lag]).sum(dim=2).mean()
        assert float(spread.correlation_L[lag]) == pytest.approx(float(products / energy), abs=1e-4)


def test_an_adapter_is_profiled_with_its_own_outputs_in_the_stream(
    dense_base: Callable[[str], Path], ids: Tensor
):
    model: Any = evaluation.load(dense_base("llama"))
    shape = model.model.layers[0].mlp.down_proj.weight.shape
    generator = torch.manual_seed(1)
    bags = {
        (layer, "down_proj"): Bag(
            torch.randn(2, shape[1], generator=generator),
            torch.randn(shape[0], 2, generator=generator),
        )
        for layer in (0, 1)
    }
    seen: dict[Any, Tensor] = {}
    with adapted(model, Exact([bags], [1.0]), seen), torch.no_grad():
        model(ids)
    found = profile(model, bags, ids)
    assert found[KEY].varying == pytest.approx(_spread(bags[KEY], seen[KEY]).varying)
    assert 0 <= high(found) <= 1


def test_a_stored_profile_is_read_as_it_was(bag: Bag, tmp_path: Path):
    found = {
        (layer, "down_proj"): _spread(bag, torch.randn(2, 50, 10).cumsum(dim=1))
        for layer in (2, 11)
    }
    write(found, tmp_path / "profile.json")
    again = read(tmp_path / "profile.json")
    assert again.keys() == found.keys()
    for key, spread in found.items():
        assert again[key].varying == spread.varying
        assert again[key].correlation_L.tolist() == pytest.approx(
            spread.correlation_L.tolist(), abs=1e-6
        )
    weights, budget = [0.5], 0.4
    assert intervals([again], weights, budget) == intervals([found], weights, budget)


def test_the_summary_counts_each_linear_by_what_varies_in_it():
    def spread(varying: float, correlation: float) -> Spread:
        return Spread(1.0, varying, torch.tensor([1.0, correlation]), high=0.5)

    found = summary({(0, "q_proj"): spread(3.0, 1.0), (0, "v_proj"): spread(1.0, 0.0)})
    assert found == {"constant": 2.0, "varying": 4.0, "high": 0.5, "correlation": [1.0, 0.75]}


def test_one_token_has_no_profile(dense_base: Callable[[str], Path], ids: Tensor):
    with pytest.raises(ValueError, match="two tokens"):
        profile(evaluation.load(dense_base("llama")), {}, ids[:, :1])
