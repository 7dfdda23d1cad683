"""The stages in a row, from a dense base on disk to a slim one, its adapters and a report."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from pruning import methods
from pruning.architectures.llama import LINEARS
from pruning.digest import tree_digest
from pruning.errors import InvalidInput
from pruning.geometry import Geometry
from pruning.jobs.outputs import slim_base
from pruning.pipeline import STAGES
from pruning.plan import Plan
from pruning.recipe import PruneSpec, Recipe
from pruning.reports.report import Report
from pruning.text import load_tokenizer

TEXT = "".join(f"Sentence {i} is about the number {i * i}.\n" for i in range(60))
ROWS = '{"prompt": "One and one is", "completion": " two."}\n' * 3


@pytest.fixture(scope="module")
def adapter(dense_base: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(dense_base("llama"), dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=list(LINEARS)))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.2 * torch.randn_like(parameter)
    directory = tmp_path_factory.mktemp("adapter")
    adapted.save_pretrained(directory)
    (directory / "eval.jsonl").write_text(ROWS)
    return directory


@pytest.fixture
def spec(dense_base: Callable[[str], Path], adapter: Path, tmp_path: Path) -> Any:
    """A spec with changes to its recipe; of another base it takes no adapter."""
    (tmp_path / "text").write_text(TEXT)

    def make(base: str = "llama", **changes: Any) -> PruneSpec:
        asked = {
            "name": "slim",
            "base": "dense",
            "target": 0.3,
            "ffn_multiple": 4,
            "calibration": {"file": "file-1", "sequences": 6, "length": 32},
            "evaluation": {"file": "file-2", "sequences": 4, "length": 32},
        }
        return PruneSpec(
            recipe=Recipe.model_validate({**asked, **changes}),
            base=dense_base(base),
            adapters={"counting": adapter} if base == "llama" else {},
            calibration=tmp_path / "text",
            evaluation=tmp_path / "text",
        )

    return make


def run(spec: PruneSpec, work: Path, stages: Any = STAGES) -> Path:
    work.mkdir(exist_ok=True)
    for stage in stages:
        STAGES[stage](spec, work, lambda fraction, message: None)
    return work


def report_of(work: Path) -> Report:
    return Report.model_validate_json((work / "evaluate" / "report.json").read_bytes())


@pytest.mark.parametrize(
    "changes",
    [
        {"criterion": {"name": "taylor"}, "allocator": {"name": "global"}},
        {"criterion": {"name": "fluctuation"}, "bias_compensation": True},
        {"criterion": {"name": "magnitude"}, "blocks": {"attention": 1, "mlp": 1}},
        {"criterion": {"name": "random"}, "export": "uniform"},
        {"criterion": {"name": "obs"}, "recovery": [{"name": "closed_form"}], "sink_tokens": 1},
    ],
    ids=lambda changes: changes["criterion"]["name"],
)
def test_two_runs_with_one_seed_write_the_same_bytes(
    changes: dict[str, Any], spec: Any, tmp_path: Path
):
    asked = spec(**changes)
    works = [run(asked, tmp_path / name) for name in ("one", "two")]
    for part in ("plan", "slice", "recover", "carry"):
        assert tree_digest(works[0] / part) == tree_digest(works[1] / part)
    one, two = (report_of(work).model_dump(exclude={"stages"}) for work in works)
    assert one == two


@pytest.mark.parametrize("base", ["gemma2", "phi3", "llama"])
def test_an_architecture_goes_through_all_stages_query_heads_included(
    base: str, spec: Any, tmp_path: Path
):
    recovery = [{"name": "closed_form"}, {"name": "lora", "params": {"tokens": 256, "checks": 1}}]
    units = ["ffn_channel", "kv_group", "query_head"]
    asked = spec(base, criterion={"name": "obs"}, recovery=recovery, units=units, target=0.5)
    report = report_of(run(asked, tmp_path / "work"))
    assert report.removed_fraction == pytest.approx(0.5, abs=0.05)
    assert all(layer.heads == layer.kv_groups for layer in report.layers)  # of two each, one
    assert report.slim.quality.token_perplexity < 1e4


@pytest.mark.parametrize("base", ["gemma2", "phi3", "qwen3", "llama"])
def test_a_narrower_hidden_state_goes_through_all_stages(base: str, spec: Any, tmp_path: Path):
    recovery = [{"name": "distill", "params": {"tokens": 256, "checks": 1}}]
    asked = spec(base, hidden_size=24, export="uniform", recovery=recovery, target=0.5)
    work = run(asked, tmp_path / "work")
    report = report_of(work)
    config = json.loads((work / "recover" / "model" / "config.json").read_text())
    assert (config["hidden_size"], config["model_type"]) == (24, base)
    assert report.removed_fraction == pytest.approx(0.5, abs=0.05)
    assert all(0 < layer.departure < 2 for layer in report.layers)
    again = run(asked, tmp_path / "again", ["calibrate", "plan", "slice"])
    assert tree_digest(work / "slice") == tree_digest(again / "slice")


@pytest.mark.parametrize("criterion", methods.names("criterion"))
def test_every_criterion_scores_query_heads_and_fused_linears(
    criterion: str, spec: Any, tmp_path: Path
):
    units = ["ffn_channel", "query_head"]
    asked = spec("phi3", criterion={"name": criterion}, units=units, target=0.5)
    work = run(asked, tmp_path / "work", ["calibrate", "plan"])
    plan = Plan.model_validate_json((work / "plan" / "plan.json").read_bytes())
    for layer in plan.layers:
        assert [head // 2 for head in layer.query_heads] == [0, 1, 2, 3]
        assert len(layer.ffn_channels) < 48


@pytest.mark.parametrize("export", ["uniform", "per_layer"])
@pytest.mark.parametrize("named", ["LlamaTokenizerFast", "PreTrainedTokenizerFast", None])
def test_a_slim_base_reads_text_as_its_base_does_whatever_its_family(
    export: str, named: str | None, spec: Any, dense_base: Any, tmp_path: Path
):
    base = shutil.copytree(dense_base("qwen2"), tmp_path / "base")
    config = json.loads((base / "tokenizer_config.json").read_text())
    config = {key: entry for key, entry in config.items() if key != "tokenizer_class"}
    config |= {"tokenizer_class": named} if named else {}
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    asked = spec("qwen2", export=export).model_copy(update={"base": base})
    work = run(asked, tmp_path / "work", ["calibrate", "plan", "slice"])
    dense, slim = load_tokenizer(base), load_tokenizer(work / "slice" / "model")
    text = "Two  spaces, 12 digits, an Ümlaut."
    assert type(slim) is type(dense)
    assert slim.encode(text) == dense.encode(text)
    assert slim.bos_token_id == dense.bos_token_id


def test_a_stage_that_is_run_again_replaces_what_an_attempt_left(spec: Any, tmp_path: Path):
    asked = spec()
    work = run(asked, tmp_path / "work", ["calibrate", "plan", "slice"])
    before = tree_digest(work / "slice")
    (work / "slice" / "model" / "model.safetensors").write_bytes(b"half")
    (work / "slice" / "leftover").touch()
    run(asked, work, ["slice"])
    assert tree_digest(work / "slice") == before


@pytest.mark.parametrize("stages", ["pruning.pipeline", "pruning.adapters.pipeline"])
def test_stages_that_run_no_model_do_not_wait_for_libraries_that_do(stages: str):
    script = f"import sys, {stages}; print({{'transformers', 'peft'}} & {{*sys.modules}})"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.stdout.strip() == "set()", found.stderr


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("stage", "words"),
    [("calibrate", "Gram matrices, layer {} of 4"), ("plan", "scoring layer {} of 4")],
)
@pytest.mark.parametrize("fleet", [None, {}], ids=["base", "fleet"])
def test_a_killed_stage_repeats_one_layer_and_ends_in_the_same_bytes(
    stage: str, words: str, fleet: Any, spec: Any, tmp_path: Path
):
    asked = spec(criterion={"name": "obs"}, bias_compensation=True, fleet=fleet)
    whole = run(asked, tmp_path / "whole", ["calibrate", "plan"])
    work = run(asked, tmp_path / "work", [] if stage == "calibrate" else ["calibrate"])
    times = 1 if fleet is None else 2
    heard: list[str] = []

    def killed_in_the_end(fraction: float, message: str) -> None:
        heard.append(message)
        if heard.count(words.format(3)) == times:
            raise Killed

    with pytest.raises(Killed):
        STAGES[stage](asked, work, killed_in_the_end)
    heard.clear()
    STAGES[stage](asked, work, lambda fraction, message: heard.append(message))
    assert heard[:2] == [words.format(3), words.format(4)]
    assert tree_digest(work / stage) == tree_digest(whole / stage)


def test_what_a_killed_evaluation_had_measured_is_not_measured_again(spec: Any, tmp_path: Path):
    asked = spec()
    whole, work = (run(asked, tmp_path / name, [*STAGES][:-1]) for name in ("whole", "work"))
    run(asked, whole, ["evaluate"])

    def killed_at_the_adapters(fraction: float, message: str) -> None:
        if message == "adapter loss":
            raise Killed

    with pytest.raises(Killed):
        STAGES["evaluate"](asked, work, killed_at_the_adapters)
    heard: list[str] = []
    STAGES["evaluate"](asked, work, lambda fraction, message: heard.append(message))
    assert heard[:3] == ["adapter loss", "adapter loss", "perplexity"]  # the dense base's is known
    one, two = (report_of(place).model_dump(exclude={"stages"}) for place in (whole, work))
    assert one == two


def test_adapters_together_are_measured_on_as_many_tokens_as_the_base(
    spec: Any, adapter: Path, tmp_path: Path
):
    asked = spec(evaluation={"file": "file-2", "sequences": 1, "length": 32})
    many = asked.model_copy(update={"adapters": {"one": adapter, "two": adapter}})
    report = report_of(run(many, tmp_path / "work"))
    assert report.evaluation_tokens == 31
    assert [found.rows for found in report.adapters] == [1, 1]  # of 3, more than 5 tokens each


def test_without_recovery_the_slim_base_is_the_one_that_was_cut(spec: Any, tmp_path: Path):
    asked = spec()
    work = run(asked, tmp_path / "work", ["calibrate", "plan", "slice", "recover"])
    assert list((work / "recover").iterdir()) == []
    assert slim_base(asked, work) == work / "slice" / "model"


def test_the_report_says_what_was_cut_and_what_it_cost(spec: Any, tmp_path: Path):
    work = tmp_path / "work"
    work.mkdir()
    (work / "slice.timing.json").write_text('{"seconds": 1.5, "peak_rss_bytes": 1000}')
    asked = spec(criterion={"name": "fluctuation"}, allocator={"name": "global"})
    run(asked, work)
    report, model = report_of(work), work / "slice" / "model"
    slim = Geometry.from_config(json.loads((model / "config.json").read_text()))
    assert report.slim.size.parameters == slim.parameters
    assert report.slim.size.weight_bytes == (model / "model.safetensors").stat().st_size
    assert report.removed_fraction == pytest.approx(0.3, abs=0.01)
    assert sum(layer.kv_groups for layer in report.layers) == sum(
        layer.num_kv_heads for layer in slim.layers
    )
    assert report.slim.size.flops_per_token < report.dense.size.flops_per_token
    (counting,) = report.adapters
    losses = [
        counting.dense_base,
        counting.dense_adapter,
        counting.slim_base,
        counting.slim_adapter,
    ]
    assert counting.rows == 3
    assert len({round(loss, 6) for loss in losses if loss is not None}) == 4
    assert [stage.stage for stage in report.stages] == ["slice", "evaluate"]
    assert {method.name for method in report.methods} == {"fluctuation", "global"}


def test_the_page_shows_the_report_and_needs_nothing_from_outside(spec: Any, tmp_path: Path):
    work = run(spec(), tmp_path / "work")
    page = (work / "evaluate" / "report.html").read_text(encoding="utf-8")
    report = report_of(work)
    assert f"{report.slim.quality.token_perplexity:.2f}" in page
    assert "counting" in page
    assert "Fluctuation-based Adaptive Structured Pruning" in page
    assert page.count("<svg") == 1 + 2 * len(report.layers)
    for foreign in ("<script", "<link", "src=", "@import", "url("):
        assert foreign not in page


def test_an_adapter_without_rows_is_carried_and_reported_without_losses(
    spec: Any, adapter: Path, tmp_path: Path
):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (bare / name).write_bytes((adapter / name).read_bytes())
    asked = spec().model_copy(update={"adapters": {"bare": bare}})
    work = run(asked, tmp_path / "work")
    (found,) = report_of(work).adapters
    assert (found.rows, found.dense_adapter, found.slim_adapter) == (0, None, None)
    assert not (work / "carry" / "adapters" / "bare" / "eval.jsonl").exists()


@pytest.mark.parametrize("base", ["mistral", "qwen2", "qwen3"])
def test_every_family_goes_through(base: str, spec: Any, tmp_path: Path):
    asked = spec(base, criterion={"name": "taylor"}, allocator={"name": "global"})
    report = report_of(run(asked, tmp_path / "work"))
    assert report.export == f"slim_{base}"
    assert report.removed_fraction == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"target": 0.97}, "target"),
        ({"criterion": {"name": "none"}}, "criterion.name"),
        ({"allocator": {"name": "global", "params": {"a": 1}}}, "allocator.params.a"),
        ({"calibration": {"file": "f", "length": 4096}}, "calibration.length"),
        ({"evaluation": {"file": "f", "length": 65}}, "evaluation.length"),
        ({"floors": {"kv_groups": 9}}, "floors.kv_groups"),
    ],
)
def test_bad_recipes_are_refused_before_anything_is_computed(
    changes: dict[str, Any], field: str, spec: Any, tmp_path: Path
):
    with pytest.raises(InvalidInput) as refused:
        run(spec(**changes), tmp_path / "work", ["calibrate"])
    assert refused.value.field == field
    assert list((tmp_path / "work" / "calibrate").iterdir()) == []


@pytest.mark.parametrize(
    ("config", "hint"),
    [
        ({"model_type": "gpt2"}, "supported families"),
        ({"model_type": "slim_llama"}, "slim already"),
        ({"quantization_config": {"bits": 4}}, "full precision"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "mixed"),
    ],
)
def test_bases_that_cannot_be_pruned_are_refused(
    config: dict[str, Any], hint: str, spec: Any, dense_base: Any, tmp_path: Path
):
    before = json.loads((dense_base("llama") / "config.json").read_text())
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps(before | config))
    asked = spec().model_copy(update={"base": base})
    with pytest.raises(InvalidInput, match=hint) as refused:
        run(asked, tmp_path / "work", ["calibrate"])
    assert refused.value.field == "base"


def test_a_base_without_safetensors_is_refused(spec: Any, dense_base: Any, tmp_path: Path):
    base = tmp_path / "base"
    base.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (base / name).write_bytes((dense_base("llama") / name).read_bytes())
    (base / "pytorch_model.bin").write_bytes(b"pickle")
    asked = spec().model_copy(update={"base": base})
    with pytest.raises(InvalidInput, match="model.safetensors") as refused:
        run(asked, tmp_path / "work", ["calibrate"])
    assert refused.value.field == "base"
