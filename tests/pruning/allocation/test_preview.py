"""What a recipe would leave, told in advance: the same as what the cut then leaves."""

from pathlib import Path
from typing import Any

import pytest

from pruning.allocation.preview import preview
from pruning.errors import InvalidInput
from pruning.export import slim_config
from pruning.geometry import Geometry
from pruning.pipeline import STAGES
from pruning.plan import Plan
from pruning.recipe import PruneSpec, Recipe
from pruning.weights.checkpoint import Checkpoint

DEMO = Path(__file__).parents[3] / "deploy" / "demo"
MAGNITUDE, FLUCTUATION = {"name": "magnitude"}, {"name": "fluctuation"}
TEXT = {"file": "none", "sequences": 2, "length": 16}


def recipe(**changes: Any) -> Recipe:
    whole = {"name": "slim", "base": "demo", "calibration": TEXT, "evaluation": TEXT}
    target = {} if "size" in changes else {"target": 0.3}
    return Recipe.model_validate(whole | target | changes)


@pytest.fixture(scope="module")
def dense() -> Geometry:
    return Geometry.of(DEMO / "base")


def planned(own: Recipe, work: Path) -> Geometry:
    """What the stages of a job leave."""
    text = DEMO / "text" / "calibration.txt"
    spec = PruneSpec(
        recipe=own, base=DEMO / "base", adapters={}, calibration=(text,), evaluation=text
    )
    for stage in ("calibrate", "plan"):
        STAGES[stage](spec, work, lambda fraction, message: None)
    plan = Plan.model_validate_json((work / "plan" / "plan.json").read_text())
    return Geometry.from_config(slim_config(Checkpoint(DEMO / "base").config, plan, own.export))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="one width for all"),
        pytest.param({"units": ["ffn_channel"], "target": 0.1}, id="channels alone"),
        pytest.param({"units": ["ffn_channel", "query_head"]}, id="query heads"),
        pytest.param({"size": {"parameters": 5_000_000}}, id="a size"),
        pytest.param(
            {
                "criterion": FLUCTUATION,
                "bias_compensation": True,
                "export": "per_layer",
            },
            id="biases that are gained",
        ),
    ],
)
def test_an_exact_preview_is_what_the_plan_keeps(
    changes: dict[str, Any], dense: Geometry, tmp_path: Path
):
    own = recipe(**({"criterion": MAGNITUDE} | changes))
    told, made = preview(dense, own, 4 * dense.parameters), planned(own, tmp_path)
    assert told.slim is not None
    assert told.slim.parameters == made.parameters
    assert told.slim.weight_bytes == 4 * made.parameters
    assert sum(layer.ffn_channels for layer in told.layers) == sum(
        layer.intermediate_size for layer in made.layers
    )


def test_where_layers_are_to_differ_the_size_is_told_and_the_widths_are_not(
    dense: Geometry, tmp_path: Path
):
    own = recipe(criterion=MAGNITUDE, allocator={"name": "global"})
    told, made = preview(dense, own, dense.parameters), planned(own, tmp_path)
    assert not told.exact
    assert "global" in told.notes[0]
    assert told.slim is not None
    assert told.slim.parameters == pytest.approx(made.parameters, rel=0.005)


def test_a_latency_is_unknown_before_it_is_measured(dense: Geometry):
    told = preview(dense, recipe(size={"latency_ms": 1.0}), 1)
    assert told.slim is None
    assert "measures" in told.notes[0]


def test_what_cannot_be_run_is_refused_as_the_job_would_be(dense: Geometry):
    with pytest.raises(InvalidInput, match="largest reachable target"):
        preview(dense, recipe(target=0.99), 1)
