"""Adapters as vectors: nothing is lost on the way there and back."""

import pytest
import torch

from pruning.adapters.algebra import Bag
from pruning.adapters.generate.vectors import Basis, Layout, Normalisation, stacked

SHAPES = {(0, "q_proj"): (3, 4), (2, "down_proj"): (4, 6), (2, "q_proj"): (2, 4)}


def adapter(seed: int) -> dict[tuple[int, str], Bag]:
    """Rank 2 on linears of two layers, which differ in length."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: Bag(
            torch.randn(2, inputs, generator=generator),
            torch.randn(outputs, 2, generator=generator),
        )
        for key, (outputs, inputs) in SHAPES.items()
    }


def test_an_adapter_comes_back_from_its_vectors():
    bags = adapter(0)
    layout = Layout.of(bags)
    assert layout.shapes == SHAPES
    assert layout.numbers == 2 * (3 + 4 + 4 + 6 + 2 + 4)
    vectors = layout.vectors(bags)
    assert vectors.shape == (2, 2 * (4 + 6 + 2 + 4))
    assert not vectors[0, 2 * (3 + 4) :].any()  # the shorter layer is padded
    found = layout.bags(vectors)
    assert found.keys() == bags.keys()
    for key, bag in bags.items():
        assert torch.equal(found[key].a_RI, bag.a_RI)
        assert torch.equal(found[key].b_OR, bag.b_OR)


def test_adapters_of_several_ranks_have_no_common_layout():
    bags = adapter(0)
    bags[0, "q_proj"] = bags[0, "q_proj"].select([0])
    with pytest.raises(ValueError, match="unpack"):
        Layout.of(bags)


def test_each_tensor_is_centred_on_the_mean_of_all_and_divided_by_its_deviation():
    layout = Layout(1, {(0, "q_proj"): (1, 2)})
    vectors = torch.tensor([[[1.0, 3.0, 5.0]], [[3.0, 5.0, 5.0]]])  # a, a, b of two adapters
    pooled = Normalisation.pooled(layout, vectors)
    assert pooled.mean_LN.tolist() == [[2.0, 4.0, 5.0]]
    assert pooled.deviation_P.tolist() == [pytest.approx(2**0.5), 1.0]  # b never varies
    normal = pooled.apply(vectors)
    assert normal[0, 0].tolist() == pytest.approx([-(2**-0.5), -(2**-0.5), 0])
    torch.testing.assert_close(pooled.undo(normal[1]), vectors[1])


def test_a_basis_as_large_as_the_span_loses_nothing_but_the_rounding_of_its_numbers():
    adapters = [adapter(seed) for seed in range(4)]
    layout = Layout.of(adapters[0])
    vectors = stacked(layout, adapters)
    rows = Normalisation.pooled(layout, vectors).apply(vectors).flatten(0, 1)
    whole = Basis.of(rows, 100)
    assert len(whole.scale_H) == 6  # four adapters of two layers, less their two means
    assert whole.steps_HN.dtype == torch.int8
    torch.testing.assert_close(whole.rows_HN.norm(dim=1), torch.ones(6), rtol=0.01, atol=0)
    assert whole.explained(rows) > 0.999
    kept = [Basis.of(rows, count).explained(rows) for count in (1, 2, 4, 6)]
    assert kept == sorted(kept)
    values = torch.linalg.svdvals(rows).square()
    assert kept[1] == pytest.approx(float(values[:2].sum() / values.sum()), abs=0.01)


def test_adapters_that_are_all_alike_teach_nothing():
    with pytest.raises(ValueError, match="alike"):
        Basis.of(torch.zeros(4, 10), 2)
