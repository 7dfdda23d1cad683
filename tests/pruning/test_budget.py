"""A target is met to within its granularity, floors hold, and what cannot be is refused."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pruning import budget, registry
from pruning.errors import InvalidInput
from pruning.geometry import Geometry, Layer
from pruning.plan import Plan
from pruning.recipe import Method, Recipe
from pruning.registry import LayerScores

NUM_LAYERS, GROUPS, WIDTH = 6, 4, 640
GEOMETRY = Geometry("llama", 4096, 256, 32, True, False, (Layer(8, GROUPS, WIDTH),) * NUM_LAYERS)


def recipe(**changes: object) -> Recipe:
    text = {"file": "file-1"}
    needed = {"name": "slim", "base": "demo", "target": 0.3, "calibration": text}
    return Recipe.model_validate({**needed, "evaluation": text, **changes})


def random_scores(seed: int) -> list[LayerScores]:
    generator = torch.Generator().manual_seed(seed)
    return [
        LayerScores(
            torch.rand(GROUPS, dtype=torch.float64, generator=generator),
            torch.rand(WIDTH, dtype=torch.float64, generator=generator),
        )
        for _ in range(NUM_LAYERS)
    ]


def allocate(asked: Recipe, scores: list[LayerScores], comparable: bool = True) -> Plan:
    budget.check(GEOMETRY, asked)
    function, _, params = registry.allocator(asked.allocator)
    return function(GEOMETRY, scores, asked, params, comparable)


def removed(plan: Plan) -> int:
    """Parameters that leave, counted unit by unit and block by block."""
    total = 0
    for index, layer in enumerate(plan.layers):
        groups = GROUPS - len(layer.kv_groups)
        channels = WIDTH - len(layer.ffn_channels)
        total += groups * GEOMETRY.kv_group_parameters(index)
        total += channels * GEOMETRY.ffn_channel_parameters(index)
        total += GEOMETRY.hidden_size * ((not layer.kv_groups) + (not layer.ffn_channels))
    return total


recipes = st.builds(
    recipe,
    target=st.floats(0.02, 0.9),
    allocator=st.sampled_from([{"name": "uniform"}, {"name": "global"}]),
    ffn_multiple=st.sampled_from([1, 16, 48, 64]),
    floors=st.fixed_dictionaries(
        {"kv_groups": st.integers(1, 4), "ffn_fraction": st.floats(0.05, 1)}
    ),
    blocks=st.fixed_dictionaries({"attention": st.integers(0, 2), "mlp": st.integers(0, 2)}),
)


@settings(deadline=None, max_examples=60)
@given(asked=recipes, seed=st.integers(0, 99))
def test_the_target_is_met_to_half_a_step_and_no_floor_is_broken(asked: Recipe, seed: int):
    try:
        budget.check(GEOMETRY, asked)
    except InvalidInput:
        assume(False)
    plan = allocate(asked, random_scores(seed))
    attentions = [layer for layer in plan.layers if layer.kv_groups]
    mlps = [layer for layer in plan.layers if layer.ffn_channels]
    assert len(attentions) == NUM_LAYERS - asked.blocks.attention
    assert len(mlps) == NUM_LAYERS - asked.blocks.mlp
    assert all(len(layer.kv_groups) >= asked.floors.kv_groups for layer in attentions)
    assert all(
        len(layer.ffn_channels) >= asked.floors.ffn_fraction * WIDTH - 1e-6 for layer in mlps
    )
    widths = {len(layer.ffn_channels) for layer in mlps}
    assert all(width % asked.ffn_multiple == 0 or width == WIDTH for width in widths)
    uniform = asked.allocator.name == "uniform"
    if uniform:
        assert len(widths) == len({len(layer.kv_groups) for layer in attentions}) == 1
    channels = asked.ffn_multiple * (len(mlps) if uniform else 1)
    ffn_step = channels * GEOMETRY.ffn_channel_parameters(0)
    kv_step = GEOMETRY.kv_group_parameters(0) * (len(attentions) if uniform else 1)
    ffn_may_shrink = len(budget.ffn_widths(GEOMETRY, asked)) > 1
    missed = abs(removed(plan) - asked.target * GEOMETRY.body_parameters)
    ffn_room = (
        len(mlps)
        * GEOMETRY.ffn_channel_parameters(0)
        * (WIDTH - budget.ffn_widths(GEOMETRY, asked)[-1])
    )
    bound = ffn_step / 2 if ffn_may_shrink and ffn_room >= kv_step else (kv_step + ffn_step) / 2
    assert missed <= bound + 1


@settings(deadline=None, max_examples=40)
@given(asked=recipes)
def test_the_largest_target_can_be_reached_and_nothing_above_it(asked: Recipe):
    largest = budget.largest_target(GEOMETRY, asked)
    assume(0.02 < largest < 0.98)
    assume(largest * GEOMETRY.body_parameters > 1.3e6 * sum(asked.blocks.model_dump().values()))
    reached = allocate(asked.model_copy(update={"target": largest - 1e-9}), random_scores(0))
    assert removed(reached) == pytest.approx(largest * GEOMETRY.body_parameters, rel=1e-6)
    with pytest.raises(InvalidInput) as refused:
        budget.check(GEOMETRY, asked.model_copy(update={"target": largest + 1e-4}))
    assert refused.value.field == "target"


@pytest.mark.parametrize("allocator", ["uniform", "global"])
def test_within_a_layer_the_lowest_scores_leave(allocator: str):
    scores = [
        LayerScores(torch.arange(4.0).double(), torch.arange(WIDTH, 0, -1).double())
        for _ in range(NUM_LAYERS)
    ]
    for layer in allocate(recipe(allocator={"name": allocator}), scores).layers:
        assert layer.kv_groups == tuple(range(GROUPS - len(layer.kv_groups), GROUPS))
        assert layer.ffn_channels == tuple(range(len(layer.ffn_channels)))


def test_global_takes_from_the_layer_that_scores_lowest_down_to_its_floor():
    scores = random_scores(0)
    scores[2] = LayerScores(scores[2].kv_group / 1e6, scores[2].ffn_channel / 1e6)
    plan = allocate(recipe(allocator={"name": "global"}, target=0.2), scores)
    assert len(plan.layers[2].kv_groups) == 1
    assert len(plan.layers[2].ffn_channels) == 64


def test_scores_that_are_not_comparable_are_standardised_before_ranking():
    scores = random_scores(0)
    scaled = [*scores[:2], LayerScores(scores[2].kv_group / 1e6, scores[2].ffn_channel / 1e6)]
    scaled += scores[3:]
    asked = recipe(allocator={"name": "global"})
    assert allocate(asked, scaled, comparable=False) == allocate(asked, scores, comparable=False)
    assert allocate(asked, scaled) != allocate(asked, scores)
    never = Method(name="global", params={"normalize": "none"})
    unscaled = asked.model_copy(update={"allocator": never})
    assert allocate(unscaled, scaled, comparable=False) == allocate(asked, scaled)


def test_the_blocks_with_the_lowest_sums_leave_first():
    scores = random_scores(0)
    low = LayerScores(scores[0].kv_group / 10, scores[0].ffn_channel)
    scores[4] = low
    scores[1] = LayerScores(scores[1].kv_group, scores[1].ffn_channel / 10)
    plan = allocate(recipe(blocks={"attention": 1, "mlp": 1}), scores)
    assert [i for i, layer in enumerate(plan.layers) if not layer.kv_groups] == [4]
    assert [i for i, layer in enumerate(plan.layers) if not layer.ffn_channels] == [1]


@pytest.mark.parametrize("kind", ["ffn_channel", "kv_group"])
def test_only_the_kinds_asked_for_are_cut(kind: str):
    plan = allocate(recipe(units=[kind], target=0.1), random_scores(0))
    groups = {len(layer.kv_groups) for layer in plan.layers}
    widths = {len(layer.ffn_channels) for layer in plan.layers}
    assert (groups == {GROUPS}) == (kind == "ffn_channel")
    assert (widths == {WIDTH}) == (kind == "kv_group")


def test_a_uniform_export_takes_head_counts_that_the_stock_class_accepts():
    asked = recipe(export="uniform", target=0.3)
    plan = allocate(asked, random_scores(0))
    assert {len(layer.kv_groups) for layer in plan.layers} == {2}  # 4 heads divide 256, 6 do not


@pytest.mark.parametrize(
    ("changes", "field", "hint"),
    [
        ({"target": 0.95}, "target", "largest reachable target is 0.8"),
        ({"target": 0.5, "floors": {"ffn_fraction": 0.9}}, "target", "largest"),
        ({"target": 0.01, "blocks": {"attention": 2}}, "target", "blocks alone"),
        ({"blocks": {"mlp": NUM_LAYERS}}, "blocks.mlp", f"at most {NUM_LAYERS - 1}"),
        ({"floors": {"kv_groups": 5}}, "floors.kv_groups", "at most 4"),
        ({"criterion": {"name": "taylr"}}, "criterion.name", "taylor"),
        ({"allocator": {"name": "globl"}}, "allocator.name", "global"),
        ({"export": "uniform", "allocator": {"name": "global"}}, "export", "allocator uniform"),
        ({"export": "uniform", "blocks": {"mlp": 1}}, "export", "as many"),
    ],
)
def test_what_cannot_be_run_is_refused_with_the_field_and_the_fix(
    changes: dict[str, object], field: str, hint: str
):
    with pytest.raises(InvalidInput) as refused:
        budget.check(GEOMETRY, recipe(**changes))
    assert refused.value.field == field
    assert hint in refused.value.message


def test_the_target_named_in_a_refusal_is_accepted():
    with pytest.raises(InvalidInput) as refused:
        budget.check(GEOMETRY, recipe(target=0.99))
    named = float(refused.value.message.split("target is ")[1].split()[0])
    budget.check(GEOMETRY, recipe(target=named))


def test_biases_in_a_stock_qwen3_are_refused_at_once():
    qwen3 = Geometry("qwen3", 4096, 256, 32, True, True, GEOMETRY.layers)
    with pytest.raises(InvalidInput, match="per_layer"):
        budget.check(qwen3, recipe(export="uniform", bias_compensation=True))


def test_a_base_that_is_slim_already_is_refused():
    slim = Geometry("llama", 8, 256, 32, True, False, (Layer(8, 4, 640), Layer(8, 4, 320)))
    with pytest.raises(InvalidInput, match="slim already"):
        budget.check(slim, recipe())
