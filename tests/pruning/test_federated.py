"""Statistics of several sites, merged, are those of one site that has all the text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pruning.calibration import collect_into
from pruning.errors import InvalidInput
from pruning.federated import merge_into
from pruning.pipeline import STAGES
from pruning.plan import Plan
from pruning.recipe import PruneSpec, Recipe
from pruning.stats import Statistics
from pruning.text import calibration_ids, load_tokenizer
from pruning.weights.checkpoint import Checkpoint

SUMS = {"input_moments", "hidden_moments", "absolute_means", "relevance", "influence"}


def quiet(fraction: float, message: str) -> None:
    return None


@pytest.fixture
def collected(dense_base: Callable[[str], Path]) -> Callable[..., Path]:
    def collect(path: Path, ids: Tensor, needs: set[Any]) -> Path:
        path.parent.mkdir(parents=True)
        collect_into(
            path, Checkpoint(dense_base("llama")), ids, needs, 0, path.parent / "state", quiet
        )
        return path

    return collect


def values(statistics: Statistics, name: str) -> dict[Any, Any]:
    records = getattr(statistics, name)
    return {(key, part): v for key, record in records.items() for part, v in vars(record).items()}


@settings(
    deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cuts=st.lists(st.integers(1, 4), min_size=1, max_size=3, unique=True).map(sorted))
def test_however_the_text_is_split_the_merged_statistics_are_those_of_the_whole(
    cuts: list[int], collected: Any, ids: Tensor, tmp_path_factory: pytest.TempPathFactory
):
    folder, needs = tmp_path_factory.mktemp("sites"), {*SUMS, "input_grams"}
    bounds = zip([0, *cuts], [*cuts, len(ids)], strict=True)
    sites = [collected(folder / str(a) / "s.safetensors", ids[a:b], needs) for a, b in bounds]
    whole = Statistics.load(collected(folder / "whole" / "s.safetensors", ids, needs))
    merge_into(folder / "merged" / "s.safetensors", sites)
    merged = Statistics.load(folder / "merged" / "s.safetensors")
    for name in ("moments", "absolute_means", "relevance", "influence"):
        expected, found = values(whole, name), values(merged, name)
        assert expected
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            torch.testing.assert_close(
                torch.as_tensor(found[key]), torch.as_tensor(value), rtol=1e-4, atol=1e-4
            )
    assert len(whole.grams) == 8
    for key in whole.grams:
        torch.testing.assert_close(merged.grams[key], whole.grams[key], rtol=1e-4, atol=1e-3)


def test_what_is_no_sum_is_refused(collected: Any, ids: Tensor, tmp_path: Path):
    sites = [
        collected(tmp_path / str(i) / "s.safetensors", ids[i : i + 2], {"saliency"}) for i in (0, 2)
    ]
    with pytest.raises(InvalidInput, match="saliency are no sums"):
        merge_into(tmp_path / "merged" / "s.safetensors", sites)


def test_sites_that_collected_other_things_are_refused(collected: Any, ids: Tensor, tmp_path: Path):
    one = collected(tmp_path / "1" / "s.safetensors", ids, {"input_moments"})
    other = collected(tmp_path / "2" / "s.safetensors", ids, {"influence"})
    with pytest.raises(InvalidInput, match="different layers"):
        merge_into(tmp_path / "merged" / "s.safetensors", [one, other])


def test_a_cut_from_two_sites_statistics_is_the_cut_from_all_of_the_text(
    dense_base: Callable[[str], Path], collected: Any, tmp_path: Path
):
    """What docs/federated.md says to do, against a job that sees both texts."""
    (tmp_path / "text").write_text("".join(f"Row {i} has the number {i * i}.\n" for i in range(99)))
    text = {"file": "f", "sequences": 12, "length": 32}
    asked = {"name": "slim", "base": "dense", "target": 0.4, "ffn_multiple": 1}
    recipe = Recipe.model_validate({**asked, "calibration": text, "evaluation": text})
    spec = PruneSpec(
        recipe=recipe,
        base=dense_base("llama"),
        adapters={},
        calibration=tmp_path / "text",
        evaluation=tmp_path / "text",
    )
    tokenizer = load_tokenizer(spec.base)
    ids = calibration_ids(tokenizer, spec.calibration, recipe.calibration, recipe.seed)
    halves = [(tmp_path / name, part) for name, part in (("a", ids[:5]), ("b", ids[5:]))]
    sites = [collected(p / "statistics.safetensors", i, {"input_moments"}) for p, i in halves]
    plans = []
    for name in ("whole", "merged"):
        work = tmp_path / name
        work.mkdir()
        STAGES["calibrate"](spec, work, quiet)
        if name == "merged":
            (work / "calibrate" / "statistics.safetensors").unlink()
            merge_into(work / "calibrate" / "statistics.safetensors", sites)
        STAGES["plan"](spec, work, quiet)
        plans.append(Plan.model_validate_json((work / "plan" / "plan.json").read_bytes()))
    assert plans[0] == plans[1]
