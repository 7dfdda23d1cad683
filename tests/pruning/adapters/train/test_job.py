"""An adapter is trained, judged and written by a job; killed at random, the same bytes."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pruning import evaluation
from pruning.adapters import pipeline
from pruning.adapters.form import nola
from pruning.adapters.jobs import stages_of
from pruning.adapters.peft_format import read_adapter
from pruning.adapters.quality import silent
from pruning.adapters.train.job import COMPACT
from pruning.adapters.train.recipes import Hyperparameters, TrainRecipe, TrainReport, TrainSpec
from pruning.artifacts import verify
from pruning.digest import tree_digest
from pruning.errors import InvalidInput
from pruning.geometry import Geometry
from pruning.jobs.kinds import ADAPTERS
from pruning.text import load_tokenizer

Training = Callable[..., TrainSpec]


def run(spec: TrainSpec, folder: Path) -> tuple[Path, TrainReport]:
    made = pipeline.run(spec, folder / "work", folder / "store", silent)
    return made, TrainReport.model_validate_json((made / "report.json").read_bytes())


def test_a_trained_adapter_is_better_than_the_base_on_rows_it_never_saw(
    training: Training, tmp_path: Path
):
    made, report = run(training(hyperparameters={"steps": 60, "checks": 6}), tmp_path)
    assert verify(made).kind == "adapter"
    assert report.rows == {"training": 58, "validation": 6}
    assert report.result < 0.7 * report.base
    best = min(report.curve, key=lambda check: check.validation)
    assert report.best_step == best.step
    assert report.result == pytest.approx(best.validation, abs=1e-5)
    info = read_adapter(made / "adapters" / "made", Geometry.of(training().base))
    assert info.rank == 4
    assert report.bytes == (made / "adapters" / "made" / "adapter_model.safetensors").stat().st_size


def test_it_stops_early_and_keeps_the_best(training: Training, tmp_path: Path):
    hyper = {"steps": 200, "checks": 100, "patience": 3, "learning_rate": 0.1}
    _, report = run(training(hyperparameters=hyper), tmp_path)
    assert report.steps < 200
    assert report.steps == report.best_step + 3 * 2  # a check every second step


def test_what_finds_nothing_better_than_the_base_publishes_nothing(
    training: Training, tmp_path: Path
):
    spec = training(hooks=[{"name": "group_lasso", "params": {"strength": 1e6}}])
    with pytest.raises(InvalidInput, match="try another rate") as refused:
        run(spec, tmp_path)
    assert refused.value.code == "no_gain"
    assert not (tmp_path / "store").exists()


def test_rows_are_forgotten_while_others_are_remembered(
    training: Training, rows_of: Callable[[str], Path], tmp_path: Path
):
    forget = {"rows": {"file": "xyz.jsonl"}, "weight": 1.0}
    spec = training(forget=forget, hyperparameters={"steps": 40, "checks": 2})
    _, report = run(spec, tmp_path)
    assert report.forget_result is not None
    assert report.result < report.base
    tokenizer = load_tokenizer(spec.base)
    assert len(evaluation.rows(tokenizer, rows_of("xyz"), 32, "x")) == 9
    alone, other = run(training(hyperparameters={"steps": 40, "checks": 2}), tmp_path / "alone")
    model = evaluation.with_adapter(evaluation.load(spec.base), alone / "adapters" / "made")
    learnt = evaluation.rows(tokenizer, rows_of("xyz"), 32, "x")
    assert report.forget_result > evaluation.completion_loss(model, learnt, silent)
    assert report.forget_result < math.log(260) + 3  # it is not driven beyond its bound for long


def test_an_adapter_of_few_numbers_is_stored_as_them(training: Training, tmp_path: Path):
    form = {"name": "nola", "params": {"bases": 8}}
    made, report = run(training(form=form, hyperparameters={"steps": 20}), tmp_path)
    assert report.parameters == 8 * 2 * 28
    assert (made / COMPACT).stat().st_size < report.bytes / 5
    assert set(nola.expand(made / COMPACT)) == {
        (int(place.partition(".")[0]), place.partition(".")[2]) for place in report.ranks
    }


@pytest.mark.parametrize(
    "recipe",
    [
        {"hooks": [{"name": "ggpo"}]},
        {"form": {"name": "growable"}},
        {"init": {"name": "lora_ga"}, "hooks": [{"name": "allora"}]},
    ],
    ids=["ggpo", "growable", "lora_ga and allora"],
)
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_a_training_makes_the_same_bytes(
    kills: int, recipe: dict[str, Any], training: Training, mortal: Callable[..., Any]
):
    spec = training(**recipe, hyperparameters={"steps": 24, "checks": 12, "patience": 12})
    jobs = mortal(ADAPTERS, spec, stages_of(spec.recipe))
    whole, durations = jobs.undisturbed()
    digest = verify(whole / "publish").digest
    for work in jobs.killed(kills, durations):
        assert verify(work / "publish").digest == digest
        assert tree_digest(work / "train") == tree_digest(whole / "train")
        said = (work / "said").read_text()
        assert all(f"step {step} of 24: " in said for step in range(2, 25, 2))  # every check


def test_chats_are_learnt_turn_by_turn(
    training: Training, tmp_path: Path, dense_base: Callable[[str], Path]
):
    tokenizer = load_tokenizer(dense_base("llama"))
    tokenizer.chat_template = (
        "<s>{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    turns = [("user", "hi"), ("assistant", "yes"), ("user", "so?"), ("assistant", "no")]
    messages: list[dict[str, Any]] = [{"role": role, "content": said} for role, said in turns]
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": messages}) + "\n")
    rows = evaluation.rows(tokenizer, path, 64, "training")
    assert [tokenizer.decode(ids[num_prompt:]) for ids, num_prompt in rows] == ["yes</s>", "no</s>"]
    assert tokenizer.decode(rows[1][0][: rows[1][1]]) == (
        "<s>[user]hi</s>[assistant]yes</s>[user]so?</s>[assistant]"
    )
    messages[1]["weight"] = 0
    path.write_text(json.dumps({"messages": messages}) + "\n")
    assert len(evaluation.rows(tokenizer, path, 64, "training")) == 1
    path.write_text(json.dumps({"messages": messages[:1]}) + "\n")
    with pytest.raises(InvalidInput, match="line 1.*the assistant says nothing"):
        evaluation.rows(tokenizer, path, 64, "training")


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"form": {"name": "core"}}, "init lora begins at zero"),
        ({"form": {"name": "nola"}, "init": {"name": "eva"}}, "leave init out"),
        ({"rank": 0}, "greater than or equal to 1"),
        ({"training": {}}, "one of file"),
        ({"hyperparameters": {"learning_rate": 0}}, "greater than 0"),
    ],
)
def test_trainings_that_cannot_be_are_refused(changes: dict[str, Any], hint: str):
    recipe = {"name": "made", "base": "demo", "training": {"file": "f"}, **changes}
    with pytest.raises(ValidationError, match=hint):
        TrainRecipe.model_validate(recipe)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"linears": ["query"]}, "linears"),
        ({"layers": [4]}, "layers"),
        ({"init": {"name": "best"}}, "init.name"),
        ({"hooks": [{"name": "ggpo", "params": {"sigma": -1}}]}, "hook.params.sigma"),
    ],
)
def test_what_the_base_or_the_catalogue_lacks_is_named(changes: dict[str, Any], field: str):
    recipe = {"name": "made", "base": "demo", "training": {"file": "f"}, **changes}
    with pytest.raises(InvalidInput) as refused:
        TrainRecipe.model_validate(recipe).check(("q_proj", "v_proj"), 4)
    assert refused.value.field == field


def test_a_recipe_that_names_no_method_takes_what_did_best():
    recipe: dict[str, Any] = {"name": "made", "base": "demo", "training": {"file": "f"}}
    chosen = TrainRecipe.model_validate(recipe)
    assert [hook.name for hook in chosen.hooks] == ["allora"]
    assert TrainRecipe.model_validate(chosen.model_dump()) == chosen
    for named in ({"hooks": []}, {"init": {"name": "eva"}}, {"form": {"name": "nested"}}):
        assert TrainRecipe.model_validate(recipe | named).hooks == ()


def test_epochs_become_steps():
    assert Hyperparameters(n_epochs=2, batch_size=8).num_steps(20) == 5
    assert Hyperparameters(steps=7).num_steps(20) == 7
