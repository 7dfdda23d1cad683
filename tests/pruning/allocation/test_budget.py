"""A target is met to within its granularity, floors hold, and what cannot be is refused."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pruning import methods
from pruning.allocation import budget, targets
from pruning.allocation.selection import select
from pruning.allocation.targets import Costs
from pruning.errors import InvalidInput
from pruning.geometry import Geometry, Layer
from pruning.plan import Widths
from pruning.recipe import Recipe
from pruning.registry import LayerScores, Problem

WHOLE_BASE = ("rate_distortion", "search")  # they run it; see allocators/test_trial.py
NUM_LAYERS, GROUPS, WIDTH = 6, 4, 640
GEOMETRY = Geometry("llama", 4096, 256, 32, True, (Layer(8, GROUPS, WIDTH),) * NUM_LAYERS)


def recipe(**changes: object) -> Recipe:
    text = {"file": "file-1"}
    needed = {"name": "slim", "base": "demo", "target": 0.3, "calibration": text}
    return Recipe.model_validate({**needed, "evaluation": text, **changes})


geometries = st.builds(
    lambda layers, kv, group, head_dim, width, hidden, family: Geometry(
        family,
        512,
        hidden,
        head_dim,
        True,
        (Layer(kv * group, kv, width, qkv_bias=family == "qwen2"),) * layers,
    ),
    layers=st.integers(2, 9),
    kv=st.integers(1, 8),
    group=st.integers(1, 4),
    head_dim=st.sampled_from([8, 32]),
    width=st.integers(32, 700),
    hidden=st.sampled_from([32, 96, 256]),
    family=st.sampled_from(["llama", "qwen2", "qwen3"]),
)
sizes = st.builds(
    lambda kind, part, context: (kind, part, context if kind == "bytes" else 0),
    kind=st.sampled_from(["target", "parameters", "bytes"]),
    part=st.floats(0.01, 0.97),
    context=st.sampled_from([0, 64, 4096]),
)
changes = st.fixed_dictionaries(
    {
        "ffn_multiple": st.sampled_from([1, 7, 16, 48]),
        "floors": st.fixed_dictionaries(
            {"kv_groups": st.integers(1, 3), "ffn_fraction": st.floats(0.05, 1)},
            optional={"layers": st.just({"1": {"kv_groups": 2, "ffn_fraction": 0.7}})},
        ),
        "blocks": st.fixed_dictionaries(
            {"attention": st.sampled_from([0, 0, 1, 2]), "mlp": st.sampled_from([0, 0, 1, 2])}
        ),
        "units": st.sampled_from(
            [
                ["ffn_channel"],
                ["kv_group"],
                ["ffn_channel", "kv_group"],
                ["ffn_channel", "query_head"],
                ["ffn_channel", "kv_group", "query_head"],
            ]
        ),
    }
)


def aimed(geometry: Geometry, part: float, aim: tuple[str, float, int], **rest: object) -> Recipe:
    """A recipe that aims at a part of what can be saved, as a fraction, parameters or bytes."""
    kind, _, context = aim
    probe = {"target": None, "size": {"bytes": 1, "context": context}, **rest}
    if kind != "bytes":
        probe |= {"size": {"parameters": 1}}
    asked = recipe(**probe)
    num_layers, num_groups = len(geometry.layers), geometry.layers[0].num_kv_heads
    assume(all(asked.floors.of(layer)[0] <= num_groups for layer in range(num_layers)))
    assume(max(asked.blocks.attention, asked.blocks.mlp) < num_layers)
    space, wanted = budget.any_space(geometry, asked), targets.wanted(geometry, asked)
    without_heads = budget.any_space(geometry, recipe(**probe | {"units": ["ffn_channel"]}))
    blocks, most = wanted - without_heads.wanted, wanted - space.wanted + space.room
    saved = blocks + part * (most - blocks)
    if kind == "target":
        assume(0 < saved / geometry.body_parameters < 1)
        return recipe(target=saved / geometry.body_parameters, **rest)
    left = round(space.costs.base - saved)
    return recipe(**probe | {"size": {kind: left, "context": context}})


def saved(geometry: Geometry, widths: Widths, costs: Costs) -> float:
    """What leaves, counted unit by unit and block by block."""
    layer = geometry.layers[0]
    value = costs.ffn_channel / geometry.ffn_channel_parameters(0)
    head_cost = value * geometry.head_dim * (2 * geometry.hidden_size + layer.qkv_bias)
    heads_out = layer.group_size - (widths.heads_per_group or layer.group_size)
    total = 0.0
    for groups, channels in zip(widths.kv_groups, widths.ffn_channels, strict=True):
        if groups:
            total += (layer.num_kv_heads - groups) * costs.kv_group
            total += groups * heads_out * head_cost
        else:
            total += costs.attention
        total += (layer.intermediate_size - channels) * costs.ffn_channel if channels else costs.mlp
    return total


@settings(max_examples=100)
@given(geometry=geometries, aim=sizes, rest=changes, seed=st.integers(0, 99))
@pytest.mark.parametrize("name", [n for n in methods.names("allocator") if n not in WHOLE_BASE])
def test_every_allocator_meets_every_target_to_half_a_step_of_one_layer(
    name: str,
    make_problem: Callable[..., Problem],
    allocate: Callable[[Problem], Widths],
    geometry: Geometry,
    aim: tuple[str, float, int],
    rest: dict[str, object],
    seed: int,
):
    try:
        asked = aimed(geometry, aim[1], aim, allocator={"name": name}, export="per_layer", **rest)
        problem = make_problem(geometry, asked, seed)
    except InvalidInput:
        assume(False)
    widths = allocate(problem)
    check_floors(geometry, asked, widths)
    costs = targets.costs(geometry, asked)
    missed = abs(saved(geometry, widths, costs) - targets.wanted(geometry, asked))
    channels = sum(kept[0] - kept[-1] for kept in problem.space.ffn_channels.values())
    ffn_closes_gaps = channels * costs.ffn_channel >= costs.kv_group
    kv_moves = problem.space.kv_steps[-1] > 0
    unit = costs.ffn_channel * asked.ffn_multiple
    if kv_moves and not ffn_closes_gaps:
        unit = max(unit, costs.kv_group) if channels else costs.kv_group
    assert missed <= unit / 2 * 1.000001 + 1


@settings(max_examples=100)
@given(
    part=st.floats(0.01, 0.97),
    kind=st.sampled_from(["parameters", "bytes"]),
    context=st.sampled_from([0, 64, 4096]),
    seed=st.integers(0, 99),
)
def test_a_size_is_met_to_a_thousandth_or_one_unit(
    make_problem: Callable[..., Problem],
    allocate: Callable[[Problem], Widths],
    part: float,
    kind: str,
    context: int,
    seed: int,
):
    rest = {"allocator": {"name": "global"}, "export": "per_layer", "ffn_multiple": 1}
    asked = aimed(GEOMETRY, part, (kind, part, context if kind == "bytes" else 0), **rest)
    widths = allocate(make_problem(GEOMETRY, asked, seed))
    costs = targets.costs(GEOMETRY, asked)
    assert asked.size is not None
    left, size = (
        costs.base - saved(GEOMETRY, widths, costs),
        asked.size.bytes or asked.size.parameters,
    )
    assert size is not None
    assert abs(left - size) <= max(0.001 * size, costs.ffn_channel)


def check_floors(geometry: Geometry, asked: Recipe, widths: Widths) -> None:
    """Only the blocks that the recipe names are gone, and no floor or multiple is broken."""
    dense = geometry.layers[0]
    assert widths.kv_groups.count(0) == asked.blocks.attention
    assert widths.ffn_channels.count(0) == asked.blocks.mlp
    for layer, (groups, width) in enumerate(
        zip(widths.kv_groups, widths.ffn_channels, strict=True)
    ):
        least_groups, least_fraction = asked.floors.of(layer)
        assert groups == 0 or groups >= min(least_groups, dense.num_kv_heads)
        assert width == 0 or width >= least_fraction * dense.intermediate_size - 1e-6
        assert width % asked.ffn_multiple == 0 or width == dense.intermediate_size
        if layer in asked.floors.layers:
            assert groups
            assert width


@settings(max_examples=60)
@given(part=st.floats(0.02, 0.98), rest=changes, seed=st.integers(0, 99))
def test_even_widths_miss_the_target_by_half_a_step_of_every_layer(
    make_problem: Callable[..., Problem],
    allocate: Callable[[Problem], Widths],
    part: float,
    rest: dict[str, object],
    seed: int,
):
    try:
        asked = aimed(GEOMETRY, part, ("target", part, 0), **rest)
        problem = make_problem(GEOMETRY, asked, seed)
    except InvalidInput:
        assume(False)
    widths = allocate(problem)
    check_floors(GEOMETRY, asked, widths)
    groups, channels = set(widths.kv_groups) - {0}, set(widths.ffn_channels) - {0}
    assert len(groups) == len(channels) == 1
    costs = targets.costs(GEOMETRY, asked)
    missed = abs(saved(GEOMETRY, widths, costs) - targets.wanted(GEOMETRY, asked))
    ffn_step = asked.ffn_multiple * costs.ffn_channel * len(problem.space.ffn_channels)
    kv_step = costs.kv_group * len(problem.space.kv_groups)
    kept = next(iter(problem.space.ffn_channels.values()))
    ffn_room = (kept[0] - kept[-1]) * costs.ffn_channel * len(problem.space.ffn_channels)
    bound = ffn_step / 2 if len(kept) > 1 and ffn_room >= kv_step else (kv_step + ffn_step) / 2
    assert missed <= bound + 1


def test_the_largest_target_can_be_reached_and_nothing_above_it(
    make_problem: Callable[..., Problem], allocate: Callable[[Problem], Widths]
):
    asked = recipe(floors={"kv_groups": 2, "ffn_fraction": 0.25}, blocks={"mlp": 1})
    # two of four groups in six layers, one MLP with its norm, 480 of 640 channels in five others
    most = 6 * 2 * 49152 + 640 * 768 + 256 + 5 * 480 * 768
    reached = asked.model_copy(update={"target": most / GEOMETRY.body_parameters - 1e-9})
    widths = allocate(make_problem(GEOMETRY, reached))
    assert saved(GEOMETRY, widths, targets.costs(GEOMETRY, asked)) == most
    beyond = most / GEOMETRY.body_parameters + 1e-4
    with pytest.raises(InvalidInput) as refused:
        budget.check(GEOMETRY, asked.model_copy(update={"target": beyond}))
    assert refused.value.field == "target"
    reach = math.floor(most / GEOMETRY.body_parameters * 1e4) / 1e4
    assert f"largest reachable target is {reach} " in refused.value.message


def test_a_size_in_parameters_counts_all_that_is_left(
    make_problem: Callable[..., Problem], allocate: Callable[[Problem], Widths]
):
    left = GEOMETRY.parameters - 1_000_000
    size = {"parameters": left}
    asked = recipe(target=None, size=size, allocator={"name": "global"}, ffn_multiple=1)
    widths = allocate(make_problem(GEOMETRY, asked))
    assert abs(saved(GEOMETRY, widths, targets.costs(GEOMETRY, asked)) - 1_000_000) <= 768 / 2


def test_a_long_context_makes_kv_groups_dearer_in_bytes():
    asked = recipe(target=None, size={"bytes": 9_000_000, "context": 1000})
    costs = targets.costs(GEOMETRY, asked)
    # 49152 weights, and 32 keys and 32 values of each of 1000 tokens; 2 bytes each
    assert costs.kv_group == 2 * (49152 + 2 * 32 * 1000)
    assert costs.ffn_channel == 2 * 768
    assert costs.base == 2 * (GEOMETRY.parameters + 6 * 4 * 2 * 32 * 1000)


def test_a_layer_with_floors_of_its_own_keeps_them_and_its_blocks(
    make_problem: Callable[..., Problem], allocate: Callable[[Problem], Widths]
):
    floors = {"layers": {"0": {"kv_groups": 4, "ffn_fraction": 1.0}}}
    lowest = LayerScores(torch.zeros(GROUPS).double(), torch.zeros(WIDTH).double())
    others = LayerScores(torch.ones(GROUPS).double(), torch.ones(WIDTH).double())
    asked = recipe(allocator={"name": "global"}, floors=floors, blocks={"attention": 1, "mlp": 1})
    problem = make_problem(GEOMETRY, asked, scores=[lowest, *[others] * (NUM_LAYERS - 1)])
    widths = allocate(problem)
    assert (widths.kv_groups[0], widths.ffn_channels[0]) == (GROUPS, WIDTH)
    assert (widths.kv_groups[1], widths.ffn_channels[1]) == (0, 0)


def test_query_heads_leave_every_group_alike_and_the_other_kinds_take_the_rest(
    make_problem: Callable[..., Problem], allocate: Callable[[Problem], Widths]
):
    geometry = Geometry("llama", 512, 256, 32, True, (Layer(16, 4, 640),) * 6)
    asked = recipe(target=0.3, units=["ffn_channel", "kv_group", "query_head"], ffn_multiple=1)
    problem = make_problem(geometry, asked)
    assert problem.space.heads_per_group == 3  # of 4: nearest to 70 %
    # k and v rows, q rows and o columns of three heads
    assert problem.space.costs.kv_group == 32 * 256 * (2 + 3 + 3)
    widths = allocate(problem)
    missed = (
        saved(geometry, widths, targets.costs(geometry, asked)) - 0.3 * geometry.body_parameters
    )
    assert abs(missed) <= 6 * 768 / 2
    plan = select(problem.scores, widths, bias_compensation=False)
    for layer, scores in zip(plan.layers, problem.scores, strict=True):
        assert layer.num_heads(geometry.layers[0]) == 3 * len(layer.kv_groups)
        for group in layer.kv_groups:
            own = range(4 * group, 4 * group + 4)
            assert set(own) - set(layer.query_heads) == {
                min(own, key=scores.query_head.__getitem__)
            }


def test_the_floor_of_query_heads_is_kept():
    geometry = Geometry("llama", 512, 256, 32, True, (Layer(16, 4, 640),) * 6)
    kept = [
        budget.any_space(
            geometry,
            recipe(target=0.6, units=["ffn_channel", "query_head"], floors={"query_heads": least}),
        ).heads_per_group
        for least in (1, 2, 4)
    ]
    assert kept == [2, 2, 4]  # nearest to 40 % of 4 is 2
    asked = recipe(units=["ffn_channel", "query_head"], floors={"query_heads": 5})
    with pytest.raises(InvalidInput, match="at most 4") as refused:
        budget.check(geometry, asked)
    assert refused.value.field == "floors.query_heads"


def test_within_a_layer_the_lowest_scores_leave():
    rising, falling = torch.arange(4.0).double(), torch.arange(8, 0, -1).double()
    plan = select([LayerScores(rising, falling)], Widths((3,), (5,)), bias_compensation=False)
    assert plan.layers[0].kv_groups == (1, 2, 3)
    assert plan.layers[0].ffn_channels == (0, 1, 2, 3, 4)


def test_the_blocks_with_the_lowest_sums_leave_first(
    make_problem: Callable[..., Problem], allocate: Callable[[Problem], Widths]
):
    asked = recipe(blocks={"attention": 1, "mlp": 1})
    scores = list(make_problem(GEOMETRY, asked).scores)
    scores[4] = LayerScores(scores[4].kv_group / 10, scores[4].ffn_channel)
    scores[1] = LayerScores(scores[1].kv_group, scores[1].ffn_channel / 10)
    widths = allocate(make_problem(GEOMETRY, asked, scores=scores))
    assert [i for i, groups in enumerate(widths.kv_groups) if not groups] == [4]
    assert [i for i, width in enumerate(widths.ffn_channels) if not width] == [1]


@pytest.mark.parametrize("kind", ["ffn_channel", "kv_group"])
def test_only_the_kinds_asked_for_are_cut(
    kind: str, make_problem: Callable[..., Problem], allocate: Callable[[Problem], Widths]
):
    widths = allocate(make_problem(GEOMETRY, recipe(units=[kind], target=0.1)))
    assert (set(widths.kv_groups) == {GROUPS}) == (kind == "ffn_channel")
    assert (set(widths.ffn_channels) == {WIDTH}) == (kind == "kv_group")


def test_a_uniform_export_takes_head_counts_that_the_stock_class_accepts(
    make_problem: Callable[..., Problem], allocate: Callable[[Problem], Widths]
):
    widths = allocate(make_problem(GEOMETRY, recipe(export="uniform", target=0.3)))
    assert set(widths.kv_groups) == {2}  # 4 heads divide 256, 6 do not


@pytest.mark.parametrize("units", [["ffn_channel"], ["kv_group", "ffn_channel", "query_head"]])
@pytest.mark.parametrize("export", ["uniform", "per_layer"])
def test_what_a_narrower_hidden_state_saves_counts(
    units: list[str],
    export: str,
    make_problem: Callable[..., Problem],
    allocate: Callable[[Problem], Widths],
):
    narrow, half = GEOMETRY.with_hidden(192), GEOMETRY.body_parameters / 2
    aims: list[dict[str, object]] = [
        {"target": 0.5},
        {"target": None, "size": {"parameters": round(half) + 192 * GEOMETRY.vocab_size}},
    ]
    for aim in aims:
        asked = recipe(hidden_size=192, ffn_multiple=1, units=units, export=export, **aim)
        widths = allocate(make_problem(GEOMETRY, asked))
        size = widths.heads_per_group or 2
        kept = zip(widths.kv_groups, widths.ffn_channels, strict=True)
        slim = replace(narrow, layers=tuple(Layer(size * n, n, width) for n, width in kept))
        step = narrow.ffn_channel_parameters(0) * NUM_LAYERS  # of layers that are alike
        assert abs(slim.body_parameters - half) <= step / 2


@pytest.mark.parametrize(
    ("changes", "field", "hint"),
    [
        ({"target": 0.95}, "target", "largest reachable target is 0.8"),
        ({"target": 0.5, "floors": {"ffn_fraction": 0.9}}, "target", "largest"),
        (
            {"target": 0.01, "blocks": {"attention": 2}},
            "target",
            "blocks, query heads and hidden size alone",
        ),
        ({"blocks": {"mlp": NUM_LAYERS}}, "blocks.mlp", f"at most {NUM_LAYERS - 1}"),
        ({"floors": {"kv_groups": 5}}, "floors.kv_groups", "at most 4"),
        ({"floors": {"layers": {"2": {"kv_groups": 5}}}}, "floors.layers.2.kv_groups", "at most 4"),
        ({"floors": {"layers": {"6": {}}}}, "floors.layers.6", "last layer is 5"),
        ({"size": {"parameters": 9}, "target": None}, "size.parameters", "smallest reachable"),
        ({"size": {"bytes": 10**9}, "target": None}, "size.bytes", "at most"),
        (
            {"allocator": {"name": "proportional"}, "target": 0.85},
            "target",
            "largest reachable target is 0.7",
        ),
        ({"criterion": {"name": "taylr"}}, "criterion.name", "taylor"),
        ({"allocator": {"name": "globl"}}, "allocator.name", "global"),
        ({"export": "uniform", "allocator": {"name": "global"}}, "export", "allocator uniform"),
        ({"export": "uniform", "blocks": {"mlp": 1}}, "export", "as many"),
        ({"hidden_size": 256}, "hidden_size", "less than the 256"),
        ({"hidden_size": 64}, "target", "hidden size alone are 0.7"),
        ({"hidden_size": 192, "carry": "refit"}, "carry", "give project"),
        ({"hidden_size": 192, "schedule": {"name": "cubic"}}, "schedule", "choose one_shot"),
        ({"hidden_size": 192, "recovery": [{"name": "closed_form"}]}, "recovery", "that train"),
        (
            {"hidden_size": 192, "size": {"latency_ms": 1}, "target": None},
            "size",
            "give a target, or another size",
        ),
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


@pytest.mark.parametrize(
    "changes",
    [
        {"target": None},
        {"size": {"parameters": 9}},
        {"target": None, "size": {}},
        {"target": None, "size": {"parameters": 9, "bytes": 9}},
    ],
)
def test_a_recipe_has_one_target_in_one_measure(changes: dict[str, object]):
    with pytest.raises(ValidationError, match="give either"):
        recipe(**changes)


def test_biases_in_a_stock_qwen3_are_refused_at_once():
    qwen3 = Geometry("qwen3", 4096, 256, 32, True, GEOMETRY.layers)
    with pytest.raises(InvalidInput, match="per_layer"):
        budget.check(qwen3, recipe(export="uniform", bias_compensation=True))


@pytest.mark.parametrize(
    ("family", "changes", "field"),
    [
        ("phi3", {"export": "per_layer"}, "export"),
        ("phi3", {"allocator": {"name": "global"}}, "allocator"),
        ("gemma2", {"blocks": {"attention": 1}}, "export"),
        ("gemma2", {"carry": "refit"}, "carry"),
        (
            "gemma2",
            {"recovery": [{"name": "closed_form", "params": {"goal": "stream"}}]},
            "recovery",
        ),
    ],
)
def test_what_an_architecture_cannot_do_is_refused_at_once(
    family: str, changes: dict[str, object], field: str
):
    geometry = Geometry(family, 4096, 256, 32, True, GEOMETRY.layers)
    budget.check(geometry, recipe())
    with pytest.raises(InvalidInput) as refused:
        budget.check(geometry, recipe(**changes))
    assert refused.value.field == field


def test_a_base_that_is_slim_already_is_refused():
    slim = Geometry("llama", 8, 256, 32, True, (Layer(8, 4, 640), Layer(8, 4, 320)))
    with pytest.raises(InvalidInput, match="slim already"):
        budget.check(slim, recipe())
