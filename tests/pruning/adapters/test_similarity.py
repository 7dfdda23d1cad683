"""The cosine between adapters: from the factors, the same as from ΔW itself."""

import json
from pathlib import Path

import pytest
import torch

from pruning import artifacts
from pruning.adapters.algebra import Bag
from pruning.adapters.jobs import AdapterSpec, CompareRecipe, CompareReport, SourceSpec
from pruning.adapters.pipeline import run
from pruning.adapters.similarity import cosines, inner, products
from pruning.adapters.source import Source, open_source
from pruning.geometry import Geometry

DEMO = Path(__file__).parents[3] / "deploy" / "demo"
NAMES = ("clinc150", "gsm8k", "shakespeare")


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    geometry = Geometry.of(DEMO / "base")
    return [open_source(name, DEMO / "adapters" / name, geometry) for name in NAMES]


def test_the_product_of_two_bags_can_be_checked_by_hand():
    one = Bag(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [0.0]]))  # ΔW = [[3, 6], [0, 0]]
    other = Bag(torch.eye(2), torch.tensor([[1.0, 1.0], [5.0, 7.0]]))  # ΔW = [[1, 1], [5, 7]]
    assert inner(one, other) == 9.0
    assert inner(one, one) == 45.0


def test_cosines_are_those_of_the_weights_that_adapters_add(sources: list[Source]):
    gram_NN = products(sources, lambda fraction, message: None)
    deltas = [[s.bag(key).delta.double().flatten() for key in sorted(s.places)] for s in sources]
    whole_NP = torch.stack([torch.cat(own) for own in deltas])
    assert torch.allclose(gram_NN, whole_NP @ whole_NP.T, rtol=1e-6)
    unit_NP = torch.nn.functional.normalize(whole_NP)
    found_NN = torch.tensor(cosines(gram_NN)).double()
    assert torch.allclose(found_NN, unit_NP @ unit_NP.T, atol=2e-6)


def test_what_adds_nothing_has_no_angle():
    assert cosines(torch.tensor([[4.0, 0.0], [0.0, 0.0]])) == [[1.0, None], [None, None]]


def test_a_job_that_compares_seals_a_report_and_no_adapter(tmp_path: Path):
    spec = AdapterSpec(
        recipe=CompareRecipe(base="demo"),
        base=DEMO / "base",
        sources={name: SourceSpec(path=DEMO / "adapters" / name) for name in NAMES},
    )
    artifact = run(spec, tmp_path / "work", tmp_path / "store", lambda fraction, message: None)
    report = CompareReport.model_validate(json.loads((artifact / "report.json").read_text()))
    assert report.names == NAMES
    assert all(report.cosines[i][i] == 1 for i in range(len(NAMES)))
    assert report.cosines[0][1] == report.cosines[1][0]
    assert artifacts.verify(artifact).kind == "comparison"
    assert not (artifact / "adapters").exists()
