"""The closed-form recovery as a stage of a job: bytes, error, resumption."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import AutoModelForCausalLM

from pruning.allocation import budget
from pruning.calibration import collect
from pruning.digest import tree_digest
from pruning.errors import InvalidInput
from pruning.export import slim_config
from pruning.geometry import Geometry
from pruning.methods.recovery import ClosedFormParams
from pruning.models.modeling import register
from pruning.plan import Plan
from pruning.recipe import Method, PruneSpec, Recipe, Text
from pruning.recovery.closed_form import RETURN, recover
from pruning.registry import RecoveryContext
from pruning.self_calibration import written
from pruning.slicing import slice_base
from pruning.weights.checkpoint import Checkpoint

PARAMS = ClosedFormParams()


def quiet(fraction: float, message: str) -> None:
    return None


def load(directory: Path) -> Any:
    register()
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def recipe(**changes: Any) -> Recipe:
    text = Text(file="file-1")
    return Recipe(
        name="slim", base="dense", target=0.3, calibration=text, evaluation=text, **changes
    )


@pytest.fixture
def context(dense_base: Callable[[str], Path], ids: Tensor, tmp_path: Path) -> Any:
    """The context of a base cut after a plan."""

    def make(plan: Plan, base: str = "llama", export: Any = "auto") -> RecoveryContext:
        checkpoint = Checkpoint(dense_base(base))
        statistics = collect(checkpoint, ids, {"input_moments"}, tmp_path, quiet)
        config = slim_config(checkpoint.config, plan, export)
        slice_base(checkpoint, plan, config, statistics, tmp_path / "cut", quiet)
        directory = checkpoint.directory
        spec = PruneSpec(
            recipe=recipe(),
            base=directory,
            adapters={},
            calibration=directory,
            evaluation=directory,
        )
        (tmp_path / "state").mkdir()
        return RecoveryContext(
            spec,
            checkpoint,
            plan,
            statistics,
            ids,
            source=tmp_path / "cut",
            destination=tmp_path / "repaired",
            state=tmp_path / "state",
        )

    return make


def first_layer_outputs(directory: Path, ids: Tensor) -> Tensor:
    """What the first attention adds to the hidden states; (sequences, tokens, hidden)."""
    model, seen = load(directory), []
    module = model.model.layers[0].self_attn.o_proj
    module.register_forward_hook(lambda _, inputs, output: seen.append(output))
    with torch.no_grad():
        model(ids)
    return seen[0]


def last_states(directory: Path, ids: Tensor) -> Tensor:
    """The hidden states before the final norm; (sequences, tokens, hidden)."""
    model, seen = load(directory), []
    model.model.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(ids)
    return seen[0]


@pytest.mark.parametrize("bias", [False, True])
def test_the_first_attention_comes_closer_to_the_dense_one_and_a_bias_helps(
    bias: bool, context: Any, even_plan: Plan, ids: Tensor
):
    work = context(even_plan.model_copy(update={"bias_compensation": bias}))
    recover(work, PARAMS, quiet)
    dense, cut, repaired = (
        first_layer_outputs(directory, ids)
        for directory in (work.checkpoint.directory, work.source, work.destination)
    )
    assert (repaired - dense).square().sum() < 0.9 * (cut - dense).square().sum()


def test_the_refit_is_the_least_squares_answer_of_the_whole_slim_model(
    context: Any, even_plan: Plan, ids: Tensor
):
    # layer 2 of the repaired model, on the inputs that its own slim layers before give it
    work = context(even_plan)
    recover(work, ClosedFormParams(damping=1e-9), quiet)
    model, seen = load(work.destination), {}
    layer = model.model.layers[2]
    layer.mlp.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    with torch.no_grad():
        model(ids)
        dense = load(work.checkpoint.directory).model.layers[2].mlp
        hidden = (dense.act_fn(dense.gate_proj(seen["x"])) * dense.up_proj(seen["x"])).flatten(0, 1)
    kept = list(even_plan.layers[2].ffn_channels)
    target = (hidden @ dense.down_proj.weight.T).detach().double()
    best = torch.linalg.lstsq(hidden[:, kept].double(), target).solution.T
    torch.testing.assert_close(
        layer.mlp.down_proj.weight.double(), best, rtol=1e-2, atol=1e-3 * best.abs().max().item()
    )


def test_towards_the_stream_each_reader_makes_up_for_the_blocks_before_it(
    context: Any, even_plan: Plan, ids: Tensor
):
    work = context(even_plan)
    dense, errors = last_states(work.checkpoint.directory, ids), {}
    for goal in ("layer", "stream"):
        state, repaired = work.state / goal, work.destination.with_name(goal)
        state.mkdir()
        asked = replace(work, state=state, destination=repaired)
        recover(asked, ClosedFormParams(goal=goal), quiet)
        errors[goal] = float((last_states(repaired, ids) - dense).square().sum())
    assert errors["stream"] < errors["layer"]


def test_towards_the_stream_a_reader_goes_part_of_the_way_to_the_dense_states(
    context: Any, even_plan: Plan, ids: Tensor
):
    work = context(even_plan)
    recover(work, ClosedFormParams(goal="stream", damping=1e-9), quiet)
    slim, dense = load(work.destination), load(work.checkpoint.directory)
    seen, mlp = {}, dense.model.layers[2].mlp
    slim.model.layers[2].mlp.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    slim.model.layers[2].post_attention_layernorm.register_forward_pre_hook(
        lambda _, inputs: seen.update(before=inputs[0])
    )
    with torch.no_grad():
        slim(ids)
        after = dense(ids, output_hidden_states=True).hidden_states[3]  # as layer 2 leaves them
        inputs = (mlp.act_fn(mlp.gate_proj(seen["x"])) * mlp.up_proj(seen["x"])).flatten(0, 1)
        own, back = inputs @ mlp.down_proj.weight.T, (after - seen["before"]).flatten(0, 1)
    kept = list(even_plan.layers[2].ffn_channels)
    goal = torch.lerp(own, back, RETURN).double()
    best = torch.linalg.lstsq(inputs[:, kept].double(), goal).solution.T
    found = slim.model.layers[2].mlp.down_proj.weight.double()
    torch.testing.assert_close(found, best, rtol=1e-2, atol=1e-3 * best.abs().max().item())


WRITERS = ClosedFormParams(goal="stream", writers=True)


def test_writers_read_the_normed_states_through_the_map_that_brings_them_nearest_to_the_dense_ones(
    context: Any, even_plan: Plan, ids: Tensor
):
    work = context(even_plan)
    recover(work, WRITERS.model_copy(update={"damping": 1e-9}), quiet)
    slim, dense = load(work.destination), load(work.checkpoint.directory)
    normed = list[Tensor]()
    for model in (slim, dense):
        norm = model.model.layers[2].post_attention_layernorm
        norm.register_forward_hook(lambda _, inputs, output: normed.append(output))
        with torch.no_grad():
            model(ids)
    entry = torch.linalg.lstsq(*(states.flatten(0, 1).double() for states in normed)).solution.T
    kept = list(even_plan.layers[2].ffn_channels)
    for linear in ("gate_proj", "up_proj"):
        of_slim, of_dense = (
            getattr(model.model.layers[2].mlp, linear).weight.double() for model in (slim, dense)
        )
        goal = of_dense[kept] @ entry
        torch.testing.assert_close(of_slim, goal, rtol=1e-2, atol=1e-3 * goal.abs().max().item())


def test_with_writers_refit_too_the_states_come_nearer_to_the_dense_ones(
    context: Any, even_plan: Plan, ids: Tensor
):
    work = context(even_plan)
    dense, errors = last_states(work.checkpoint.directory, ids), list[float]()
    for params in (ClosedFormParams(goal="stream"), WRITERS):
        state, repaired = (work.state / f"{params.writers}-{what}" for what in ("state", "base"))
        state.mkdir()
        recover(replace(work, state=state, destination=repaired), params, quiet)
        errors.append(float((last_states(repaired, ids) - dense).square().sum()))
    assert errors[1] < errors[0]


def test_writers_are_refit_towards_dense_states_only():
    with pytest.raises(ValidationError, match="give goal stream"):
        ClosedFormParams(writers=True)


def test_towards_the_stream_a_kill_between_the_two_passages_is_made_good(
    context: Any, even_plan: Plan
):
    work, params = context(even_plan), ClosedFormParams(goal="stream")
    recover(work, params, quiet)
    states = work.state / "dense"
    num_layers = len(even_plan.layers)
    before = tree_digest(work.destination)
    # as if the guide had not yet finished the last layer
    (states / f"states-{num_layers}.f32").rename(states / "finished.f32")
    (states / f"states-{num_layers - 1}.f32").write_bytes((states / "finished.f32").read_bytes())
    again = replace(work, destination=work.destination.with_name("again"))
    recover(again, params, quiet)
    assert tree_digest(again.destination) == before


def test_keeping_everything_changes_no_byte(context: Any, dense_base: Callable[[str], Path]):
    plan = Plan.dense(Checkpoint(dense_base("llama")).geometry)
    work = context(plan)
    recover(work, PARAMS, quiet)
    assert tree_digest(work.destination) == tree_digest(work.source)


@pytest.mark.parametrize("params", [PARAMS, ClosedFormParams(goal="stream"), WRITERS], ids=str)
@pytest.mark.parametrize("name", ["mistral", "qwen2", "qwen3", "phi3", "llama with biases"])
def test_every_family_is_refit_and_what_is_written_is_what_was_walked(
    name: str, params: ClosedFormParams, context: Any, even_plan: Plan, ids: Tensor
):
    work = context(even_plan, name)
    recover(work, params, quiet)
    with torch.no_grad():
        before, after = (load(d)(ids).logits for d in (work.source, work.destination))
    assert not torch.equal(before, after)
    walked = torch.from_file(str(work.state / "states-4.f32"), size=ids.numel() * 32)
    states = last_states(work.destination, ids)  # what was refit is what was written
    torch.testing.assert_close(walked.view_as(states), states, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("params", [PARAMS, ClosedFormParams(goal="stream"), WRITERS], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_layers_without_a_block_or_gone_altogether_are_passed_by(
    bias: bool, params: ClosedFormParams, context: Any, uneven_plan: Plan, ids: Tensor
):
    work = context(uneven_plan.model_copy(update={"bias_compensation": bias}))
    recover(work, params, quiet)
    config = json.loads((work.destination / "config.json").read_text())
    assert len(Geometry.from_config(config).layers) == 3
    with torch.no_grad():
        assert load(work.destination)(ids).logits.isfinite().all()


class Killed(Exception):
    pass


@pytest.mark.parametrize("layer", [1, 3])
def test_a_killed_refit_repeats_one_layer_and_ends_in_the_same_bytes(
    layer: int, context: Any, even_plan: Plan, tmp_path: Path
):
    work = context(even_plan)
    recover(work, PARAMS, quiet)
    state = tmp_path / "second"
    state.mkdir()
    again = replace(work, state=state, destination=tmp_path / "again")
    heard: list[str] = []

    def killed_in(fraction: float, message: str) -> None:
        heard.append(message)
        if message == f"refitting layer {layer + 1} of 4":
            raise Killed

    with pytest.raises(Killed):
        recover(again, PARAMS, killed_in)
    (state / "attended.f32").write_bytes(b"half a block")
    heard.clear()
    recover(again, PARAMS, lambda fraction, message: heard.append(message))
    assert heard == [f"refitting layer {i + 1} of 4" for i in range(layer, 4)]
    assert tree_digest(again.destination) == tree_digest(work.destination)


WRITES = ClosedFormParams(goal="stream", self_calibration=9)


def test_self_calibration_refits_to_the_text_that_the_dense_base_writes_as_well(
    context: Any, even_plan: Plan, ids: Tensor
):
    work = context(even_plan)
    recover(work, WRITES, quiet)
    (work.state / "given").mkdir()
    base, seed = work.checkpoint.directory, work.spec.recipe.seed
    own = written(base, ids, 9, seed, work.state / "given", quiet)
    again = replace(
        work,
        ids_ST=torch.cat([ids, own]),
        state=work.state / "given",
        destination=work.destination.with_name("given"),
    )
    recover(again, ClosedFormParams(goal="stream"), quiet)
    assert tree_digest(again.destination) == tree_digest(work.destination)


def test_it_must_come_first_because_it_starts_from_the_dense_weights(context: Any, even_plan: Plan):
    twice = recipe(recovery=(Method(name="closed_form"),) * 2)
    with pytest.raises(InvalidInput, match="put it first"):
        budget.check(context(even_plan).checkpoint.geometry, twice)


def test_a_base_that_memory_cannot_hold_is_refused_where_it_is_to_write(
    dense_base: Callable[[str], Path],
):
    geometry = Checkpoint(dense_base("llama")).geometry

    def asked(**params: Any) -> Recipe:
        return recipe(recovery=(Method(name="closed_form", params={"memory_gib": 1e-6, **params}),))

    budget.check(geometry, asked())
    with pytest.raises(InvalidInput, match="or leave self_calibration out") as refused:
        budget.check(geometry, asked(self_calibration=9))
    assert refused.value.field == "recovery.params.memory_gib"
