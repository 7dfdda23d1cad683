"""Trained recovery on tiny bases: what moves, what stays, what is merged, and what a kill costs."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pruning import evaluation
from pruning.digest import file_digest, tree_digest
from pruning.errors import InvalidInput
from pruning.methods import names
from pruning.methods.recovery import LoraParams
from pruning.pipeline import STAGES
from pruning.recipe import PruneSpec, Recipe
from pruning.reports.report import Report
from pruning.training.data import training_split
from pruning.training.lora import merged, with_lora
from pruning.weights.rewriting import rewrite

TRAINED = ("align", "distill", "lisa", "lora", "lora_distill", "masked_lora", "norms", "owlore")
TEXT = "".join(f"Sentence {i} is about the number {i * i}.\n" for i in range(60))
BEFORE = ("calibrate", "plan", "slice")
QUICK = {"tokens": 2000, "batch": 4, "learning_rate": 0.003, "checks": 4}


def quiet(fraction: float, message: str) -> None:
    return None


@pytest.fixture
def spec(dense_base: Callable[[str], Path], tmp_path: Path) -> Callable[..., PruneSpec]:
    """A spec with a recovery method, and changes to its parameters."""
    (tmp_path / "text").write_text(TEXT)

    def make(method: str, base: str = "llama", **params: Any) -> PruneSpec:
        recipe = Recipe.model_validate(
            {
                "name": "slim",
                "base": "dense",
                "target": 0.3,
                "ffn_multiple": 4,
                "bias_compensation": True,
                "recovery": [{"name": method, "params": {**QUICK, **params}}],
                "calibration": {"file": "file-1", "sequences": 6, "length": 32},
                "evaluation": {"file": "file-2", "sequences": 4, "length": 32},
            }
        )
        text, directory = tmp_path / "text", dense_base(base)
        return PruneSpec(
            recipe=recipe, base=directory, adapters={}, calibration=text, evaluation=text
        )

    return make


def run(spec: PruneSpec, work: Path, *stages: str) -> Path:
    work.mkdir(exist_ok=True)
    for stage in stages:
        STAGES[stage](spec, work, quiet)
    return work


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model" / "model.safetensors")


def moved(work: Path) -> set[str]:
    """The tensors that recovery changed."""
    before, after = weights(work / "slice"), weights(work / "recover")
    assert [(n, t.shape, t.dtype) for n, t in before.items()] == [
        (n, t.shape, t.dtype) for n, t in after.items()
    ]
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_the_trained_methods_are_all_here():
    assert set(TRAINED) <= set(names("recovery"))


@pytest.mark.parametrize("base", ["llama", "qwen3"])
@pytest.mark.parametrize("method", TRAINED)
def test_held_out_loss_falls_and_the_base_still_loads(
    method: str, base: str, spec: Any, tmp_path: Path
):
    heard: list[str] = []
    asked = spec(method, base)
    work = run(asked, tmp_path / "work", *BEFORE)
    STAGES["recover"](asked, work, lambda fraction, message: heard.append(message))
    assert heard[0].startswith("step 1 of 16: loss ")
    held_out, at_first = map(float, re.findall(r"held out (\S+) \(at first (\S+)\)", heard[-1])[0])
    assert held_out < at_first
    assert moved(work)
    evaluation.load(work / "recover" / "model")
    assert {path.name for path in (work / "recover" / "model").iterdir()} == {
        path.name for path in (work / "slice" / "model").iterdir()
    }


def test_norms_trains_norms_and_biases_and_nothing_else(spec: Any, tmp_path: Path):
    work = run(spec("norms"), tmp_path / "work", *BEFORE, "recover")
    names = weights(work / "slice")
    assert moved(work) == {n for n in names if "norm" in n or n.endswith("bias")}
    assert any(name.endswith("o_proj.bias") for name in moved(work))


def test_masked_lora_leaves_zeros_where_they_are(spec: Any, tmp_path: Path):
    work = run(spec("masked_lora"), tmp_path / "work", *BEFORE)
    path = work / "slice" / "model" / "model.safetensors"
    sparse = {
        n: t * (torch.rand(t.shape) < 0.5) if "proj" in n else t
        for n, t in weights(work / "slice").items()
    }
    save_file(sparse, path, {"format": "pt"})
    run(spec("masked_lora"), work, "recover")
    for name, recovered in weights(work / "recover").items():
        if name.endswith("proj.weight"):
            assert torch.equal(recovered == 0, sparse[name] == 0)
    outside = {"model.embed_tokens.weight", "lm_head.weight"}
    assert moved(work) == sparse.keys() - outside


@pytest.mark.parametrize("base", ["llama", "mistral"])
def test_distillation_leaves_embedding_and_head_alone(base: str, spec: Any, tmp_path: Path):
    work = run(spec("distill", base), tmp_path / "work", *BEFORE, "recover")
    outside = {"model.embed_tokens.weight", "lm_head.weight"}
    assert moved(work) == weights(work / "slice").keys() - outside


@pytest.mark.parametrize(
    ("base", "head"), [("llama", "model.embed_tokens.weight"), ("mistral", "lm_head.weight")]
)
def test_alignment_leaves_the_output_head_alone(base: str, head: str, spec: Any, tmp_path: Path):
    work = run(spec("align", base), tmp_path / "work", *BEFORE, "recover")
    assert moved(work) == weights(work / "slice").keys() - {head}


@pytest.mark.parametrize("method", ["lora", "lora_distill"])
def test_lora_changes_the_linears_and_nothing_else(method: str, spec: Any, tmp_path: Path):
    work = run(spec(method), tmp_path / "work", *BEFORE, "recover")
    assert moved(work) == {n for n in weights(work / "slice") if n.endswith("proj.weight")}


def test_merging_gives_the_weights_and_the_outputs_of_the_base_with_its_factors(
    dense_base: Callable[[str], Path], ids: torch.Tensor
):
    params = LoraParams(rank=3, alpha=6.0)
    before = evaluation.load(dense_base("llama")).state_dict()
    model = with_lora(evaluation.load(dense_base("llama")), params, seed=1)
    factors = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter)
            factors[name.removeprefix("base_model.model.")] = parameter.data.clone()
    with torch.no_grad():
        expected = model(ids).logits
    after = merged(model)
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        linear = f"model.layers.2.{name}"
        a, b = (factors[f"{linear}.lora_{x}.default.weight"] for x in "AB")
        torch.testing.assert_close(
            after[f"{linear}.weight"], before[f"{linear}.weight"] + 2 * b @ a
        )
    fresh = evaluation.load(dense_base("llama"))
    fresh.load_state_dict(after)
    with torch.no_grad():
        torch.testing.assert_close(fresh(ids).logits, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_nothing_changed_are_written_as_the_same_bytes(
    dtype: torch.dtype, dense_base: Callable[[str], Path], tmp_path: Path
):
    model = evaluation.load(dense_base("llama")).to(dtype)
    model.save_pretrained(tmp_path / "stored")
    loaded = evaluation.load(tmp_path / "stored")
    rewrite(tmp_path / "stored", tmp_path / "again", loaded.state_dict().__getitem__)
    rewrite(tmp_path / "again", tmp_path / "twice", loaded.state_dict().__getitem__)
    assert tree_digest(tmp_path / "again") == tree_digest(tmp_path / "twice")
    for name, tensor in load_file(tmp_path / "stored" / "model.safetensors").items():
        assert torch.equal(load_file(tmp_path / "again" / "model.safetensors")[name], tensor)


@pytest.mark.parametrize("method", TRAINED)
def test_training_that_helps_nothing_leaves_the_bytes_of_the_slim_base(
    method: str, spec: Any, tmp_path: Path
):
    work = run(spec(method, learning_rate=1e-30), tmp_path / "work", *BEFORE, "recover")
    files = [work / stage / "model" / "model.safetensors" for stage in ("slice", "recover")]
    assert file_digest(files[0]) == file_digest(files[1])


def test_the_report_measures_the_recovered_base_and_cites_the_method(spec: Any, tmp_path: Path):
    work = run(spec("distill"), tmp_path / "work", *STAGES)
    report = Report.model_validate_json((work / "evaluate" / "report.json").read_bytes())
    assert [m.venue for m in report.methods if m.kind == "recovery"] == ["2015"]
    assert "recovery distill" in (work / "evaluate" / "report.html").read_text()
    bare = spec("distill")
    bare = bare.model_copy(update={"recipe": bare.recipe.model_copy(update={"recovery": ()})})
    run(bare, work, "evaluate")
    unrepaired = Report.model_validate_json((work / "evaluate" / "report.json").read_bytes())
    assert report.slim.quality != unrepaired.slim.quality


def test_a_training_text_of_its_own_is_the_one_that_is_trained_on(spec: Any, tmp_path: Path):
    asked = spec("distill")
    (tmp_path / "other").write_text("x" * 310)
    update = {
        "recipe": asked.recipe.model_validate(
            {**asked.recipe.model_dump(), "training": {"file": "f", "sequences": 9, "length": 32}}
        ),
        "training": tmp_path / "other",
    }
    split = training_split(asked.model_copy(update=update), 0.2)
    assert (len(split.training_ST), len(split.held_out_ST)) == (7, 2)
    assert split.training_ST[:, 1:].unique().numel() == 1
    whole = training_split(asked, 0.2)
    assert len(whole.training_ST) + len(whole.held_out_ST) == len(TEXT) // 31


def test_a_text_of_one_sequence_cannot_be_trained_on(spec: Any, tmp_path: Path):
    asked = spec("distill")
    (tmp_path / "text").write_text("x" * 40)
    with pytest.raises(InvalidInput, match="two sequences") as refused:
        training_split(asked, 0.2)
    assert refused.value.field == "calibration.length"


@pytest.mark.parametrize("method", ["distill", "owlore"])
def test_killed_in_the_middle_of_training_the_stage_makes_the_same_bytes(
    method: str, spec: Any, tmp_path: Path
):
    params = {"every": 3, "layers": 1, "rank": 4} if method == "owlore" else {}
    asked = spec(method, tokens=6400, checks=25, patience=25, **params)  # 50 steps
    work = run(asked, tmp_path / "work", *BEFORE, "recover")
    expected = tree_digest(work / "recover")
    assert moved(work)
    shutil.rmtree(work / "recover.state")  # or the work would be found done

    (work / "spec.json").write_text(asked.model_dump_json())
    command = [sys.executable, "-m", "pruning.jobs.stage", "recover", str(work)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as stage:
        assert stage.stdout is not None
        said = [json.loads(stage.stdout.readline())["message"] for _ in range(8)]
        stage.send_signal(signal.SIGKILL)
    assert stage.returncode == -signal.SIGKILL
    assert said[-1].startswith("step 8 of 50")
    assert not (work / "recover" / "model").exists()

    resumed: list[str] = []
    STAGES["recover"](asked, work, lambda fraction, message: resumed.append(message))
    assert 1 < int(resumed[0].split()[1]) <= 50
    assert tree_digest(work / "recover") == expected
