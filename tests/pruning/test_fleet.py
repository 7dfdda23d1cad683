"""Importance for a fleet: what any tenant, or all together, would miss."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from pruning.architectures.llama import LINEARS
from pruning.digest import tree_digest
from pruning.errors import InvalidInput
from pruning.fleet import Tenant, combine
from pruning.pipeline import STAGES
from pruning.plan import Plan
from pruning.recipe import PruneSpec, Recipe
from pruning.registry import LayerScores
from pruning.stats import Statistics

TEXT = "".join(f"Sentence {i} is about the number {i * i}.\n" for i in range(60))
OTHER = "".join(f"{{{i}: [{i * 7}, {i % 3}]}};\n" for i in range(120))


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def scores(*layers: tuple[float, ...]) -> list[LayerScores]:
    """Of FFN channels; there is one KV group, always the same."""
    return [LayerScores(numbers(1.0), numbers(*layer)) for layer in layers]


def channels(combined: list[LayerScores]) -> list[list[float]]:
    return [layer.ffn_channel.tolist() for layer in combined]


# the base misses channel 0, the adapter channel 1; the root mean squares are 5 and 50
BASE, ADAPTER = scores((7.0, 1.0)), scores((10.0, 70.0))


def test_the_maximum_keeps_what_any_tenant_needs():
    # brought to the mean of the root mean squares, 27.5: (38.5, 5.5) and (5.5, 38.5)
    found = channels(combine([(1, BASE), (1, ADAPTER)], "max", True))
    assert found == [pytest.approx([38.5, 38.5])]


def test_the_mean_weighs_the_tenants():
    found = channels(combine([(3, BASE), (1, ADAPTER)], "mean", True))
    assert found == [pytest.approx([(3 * 38.5 + 5.5) / 4, (3 * 5.5 + 38.5) / 4])]


def test_layers_on_scales_of_their_own_are_compared_layer_by_layer():
    loud = scores((7.0, 1.0), (100.0, 700.0))  # root mean squares 5 and 500
    even = scores((5.0, 5.0), (50.0, 50.0))  # 5 and 50
    first, second = channels(combine([(1, loud), (1, even)], "max", False))
    assert first == pytest.approx([7.0, 5.0])
    assert second == pytest.approx([275.0, 275 * 1.4])


@given(scale=st.floats(1e-3, 1e3), comparable=st.booleans())
def test_the_scale_of_a_tenant_does_not_change_the_order(scale: float, comparable: bool):
    louder = [LayerScores(s.kv_group, s.ffn_channel * scale) for s in ADAPTER]
    third = scores((6.0, 2.0))
    plain, scaled = (
        combine([(1, third), (1, a)], "mean", comparable)[0] for a in (ADAPTER, louder)
    )
    assert plain.ffn_channel.argsort().tolist() == scaled.ffn_channel.argsort().tolist()


@pytest.mark.parametrize("how", ["max", "mean"])
@pytest.mark.parametrize("comparable", [True, False])
def test_a_tenant_alone_keeps_its_scores(how: Any, comparable: bool):
    (found,) = channels(combine([(1, ADAPTER)], how, comparable))
    assert found == pytest.approx([10.0, 70.0])


def test_a_tenant_without_any_activation_is_no_obstacle():
    found = channels(combine([(1, BASE), (1, scores((0.0, 0.0)))], "max", True))
    assert found == [pytest.approx([3.5, 0.5])]


@pytest.fixture(scope="module")
def make_adapter(
    dense_base: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    def make(seed: int, **changes: Any) -> Path:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(dense_base("llama"), dtype=torch.float32)
        config = {"r": 4, "lora_alpha": 8, "target_modules": list(LINEARS)} | changes
        adapted = get_peft_model(model, LoraConfig(**config))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.data = 0.3 * torch.randn_like(parameter)
        directory = tmp_path_factory.mktemp("adapter")
        adapted.save_pretrained(directory)
        return directory

    return make


@pytest.mark.parametrize(
    "changes", [{}, {"use_rslora": True}, {"target_modules": ["up_proj"]}], ids=str
)
def test_a_tenant_is_the_base_with_the_adapter_merged(
    changes: dict[str, Any], make_adapter: Any, dense_base: Callable[[str], Path]
):
    adapter = make_adapter(1, **changes)
    model = AutoModelForCausalLM.from_pretrained(dense_base("llama"), dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload().model.layers[2]
    for name, tensor in Tenant(dense_base("llama"), adapter, "a").layer(2).items():
        torch.testing.assert_close(tensor, merged.get_parameter(name).data)


@pytest.fixture
def spec(dense_base: Callable[[str], Path], make_adapter: Any, tmp_path: Path) -> Any:
    (tmp_path / "text").write_text(TEXT)
    (tmp_path / "other").write_text(OTHER)

    def make(fleet: dict[str, Any] | None, **changes: Any) -> PruneSpec:
        text = {"file": "file-1", "sequences": 6, "length": 32}
        asked = {
            "name": "slim",
            "base": "dense",
            "target": 0.4,
            "ffn_multiple": 4,
            "calibration": text,
            "evaluation": text,
            "criterion": {"name": "taylor"},
            "fleet": fleet,
        }
        return PruneSpec(
            recipe=Recipe.model_validate(asked | changes),
            base=dense_base("llama"),
            adapters={"one": make_adapter(1), "two": make_adapter(2)},
            calibration=tmp_path / "text",
            evaluation=tmp_path / "text",
            fleet_texts={"two": tmp_path / "other"},
        )

    return make


def run(spec: PruneSpec, work: Path) -> Plan:
    work.mkdir()
    for stage in ("calibrate", "plan"):
        STAGES[stage](spec, work, lambda fraction, message: None)
    return Plan.model_validate_json((work / "plan" / "plan.json").read_bytes())


@pytest.mark.parametrize("name", ["taylor", "wanda", "magnitude", "lora_guided", "obs"])
def test_any_criterion_scores_the_fleet_and_twice_the_same(name: str, spec: Any, tmp_path: Path):
    asked = spec({"combine": "max"}, criterion={"name": name})
    plans = [run(asked, tmp_path / work) for work in ("a", "b")]
    assert tree_digest(tmp_path / "a") == tree_digest(tmp_path / "b")
    assert plans[0] != run(spec(None, criterion={"name": name}), tmp_path / "base")


def test_a_fleet_where_only_the_base_weighs_anything_is_the_base_alone(spec: Any, tmp_path: Path):
    alone = run(spec({"weights": {"one": 0, "two": 0}}), tmp_path / "fleet")
    assert list((tmp_path / "fleet" / "calibrate" / "fleet").iterdir()) == []
    assert alone == run(spec(None), tmp_path / "base")


def test_an_adapter_is_calibrated_on_its_own_text_or_on_that_of_the_recipe(
    spec: Any, tmp_path: Path
):
    own = {"file": "file-2", "sequences": 3, "length": 16}
    changes = {"criterion": {"name": "wanda"}}
    run(spec({"texts": {"two": own}}, **changes), tmp_path / "work")
    folder = tmp_path / "work" / "calibrate" / "fleet"
    counts = {
        path.stem: Statistics.load(path).moments[0, "o_proj"].count for path in folder.iterdir()
    }
    assert counts == {"one": 6 * 32, "two": 3 * 16}


@pytest.mark.parametrize(
    ("fleet", "field", "hint"),
    [
        ({"weights": {"three": 1}}, "fleet.weights.three", "one, two"),
        ({"texts": {"three": {"file": "f"}}}, "fleet.texts.three", "one, two"),
        ({"texts": {"two": {"file": "f", "length": 65}}}, "fleet.texts.two.length", "64"),
        ({"base_weight": 0, "weights": {"one": 0, "two": 0}}, "fleet.base_weight", "above 0"),
    ],
)
def test_a_fleet_that_cannot_be_is_refused(
    fleet: dict[str, Any], field: str, hint: str, spec: Any, tmp_path: Path
):
    with pytest.raises(InvalidInput, match=hint) as refused:
        run(spec(fleet), tmp_path / "work")
    assert refused.value.field == field


def test_a_negative_weight_is_no_recipe():
    with pytest.raises(ValueError, match="must not be negative"):
        Recipe.model_validate(
            {
                "name": "slim",
                "base": "dense",
                "target": 0.4,
                "calibration": {"file": "f"},
                "evaluation": {"file": "f"},
                "fleet": {"weights": {"one": -1}},
            }
        )
