"""The largest entries of queries, keys and what an adapter adds to them."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pruning import evaluation
from pruning.adapters import algebra
from pruning.adapters.algebra import Bag
from pruning.adapters.compression import linear_of
from pruning.adapters.limits import limits
from pruning.geometry import Geometry

ROWS = [([1, 5, 9, 2, 7], 2), ([3, 4], 1)]


@pytest.fixture
def bag() -> Callable[[int, int], Bag]:
    def make(inputs: int, outputs: int) -> Bag:
        generator = torch.Generator().manual_seed(0)
        a_RI = torch.randn(2, inputs, generator=generator)
        return Bag(a_RI, torch.randn(outputs, 2, generator=generator))

    return make


def test_they_are_those_of_the_products_with_the_layers_inputs(
    dense_base: Callable[[str], Path], bag: Callable[[int, int], Bag]
):
    base = dense_base("llama")
    model, geometry = evaluation.load(base), Geometry.of(base)
    linear = linear_of(model, (0, "q_proj"))
    outputs, inputs = linear.weight.shape
    bags = {(0, "q_proj"): bag(inputs, outputs)}
    found = limits(model, geometry, bags, ROWS)
    with torch.no_grad():
        layer = model.model.layers[0]
        x_TI = layer.input_layernorm(
            model.model.embed_tokens(torch.tensor(ROWS[0][0] + ROWS[1][0]))
        )
        query = (x_TI @ linear.weight.T).abs().max()
        added = (x_TI @ bags[0, "q_proj"].delta.T).abs().max()
    assert found.layers[0].query == pytest.approx(float(query), rel=1e-5)
    assert found.layers[0].added_query == pytest.approx(float(added), rel=1e-5)
    assert found.layers[0].added_key == 0
    assert found.layers[3].added_query == 0
    assert found.tokens == 5
    assert found.threshold == pytest.approx(math.sqrt(math.log(5)))
    assert found.break_even_tokens == inputs * outputs // (inputs + outputs)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_what_is_added_grows_with_alpha(
    family: str, dense_base: Callable[[str], Path], bag: Callable[[int, int], Bag]
):
    """With queries and keys in one linear as well: both are seen."""
    base = dense_base(family)
    model, geometry = evaluation.load(base), Geometry.of(base)
    names = ("qkv_proj",) if family == "phi3" else ("q_proj", "k_proj")
    keys = [(layer, name) for layer in range(len(geometry.layers)) for name in names]
    bags = {key: bag(*reversed(linear_of(model, key).weight.shape)) for key in keys}
    whole = limits(model, geometry, bags, ROWS)
    twice = {key: algebra.scale(one, 2.0) for key, one in bags.items()}
    for layer, found in limits(model, geometry, twice, ROWS).layers.items():
        assert found.added_query == pytest.approx(2 * whole.layers[layer].added_query, rel=1e-5)
        assert found.added_key == pytest.approx(2 * whole.layers[layer].added_key, rel=1e-5)
        assert found.query == whole.layers[layer].query  # of the base alone
