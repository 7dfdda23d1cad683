"""Adapters refit after a cut: closer to the dense base with its adapter, their files alike."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from pruning.adapters.algebra import Bag, adapter_of, bags_of, scale
from pruning.adapters.atoms import Adapter
from pruning.adapters.carry import Cut
from pruning.adapters.own_text import OwnText, share_of_budget
from pruning.adapters.refit import closest, refit_adapters
from pruning.allocation import budget
from pruning.architectures.llama import LINEARS
from pruning.digest import tree_digest
from pruning.errors import InvalidInput
from pruning.export import slim_config
from pruning.geometry import Geometry
from pruning.pipeline import STAGES
from pruning.plan import Plan
from pruning.recipe import PruneSpec, Recipe
from pruning.slicing import slice_base
from pruning.statistics.grams import Gram
from pruning.statistics.walk import Blocks, Passage
from pruning.stats import Statistics
from pruning.text import load_tokenizer
from pruning.weights.checkpoint import Checkpoint
from pruning.weights.tensors import block_of

TEXT = "".join(f"Sentence {i} is about the number {i * i}.\n" for i in range(60))
ROWS = "".join(f'{{"prompt": "{i} and {i} is", "completion": " {2 * i}."}}\n' for i in range(40))


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def misses(target: Tensor, inputs: Tensor, kept: Tensor, slim: Tensor) -> tuple[Tensor, Gram]:
    """Σ y xᵀ and the Gram for y = target · x − slim · x, over the inputs x that stay."""
    gram = Gram(len(kept))
    gram.add(inputs[:, kept])
    return (inputs @ target.T - inputs[:, kept] @ slim.T).T @ inputs[:, kept], gram


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), rank=st.integers(1, 3))
def test_refit_atoms_are_never_farther_from_the_dense_reader_than_carried_ones(
    seed: int, rank: int
):
    inputs, kept = random(40, 6, seed=seed) @ random(6, 6, seed=seed + 1), torch.tensor([0, 2, 3])
    target, slim = random(4, 6, seed=seed + 2), random(4, 3, seed=seed + 3)
    carried = Bag(random(rank, 3, seed=seed + 4), random(4, rank, seed=seed + 5))
    found = closest(*misses(target, inputs, kept, slim), carried)

    def error(bag: Bag) -> float:
        fitted = inputs[:, kept] @ (slim + bag.delta).T
        return float((inputs @ target.T - fitted).square().sum())

    assert found.rank == rank
    assert error(found) <= error(carried) * 1.0001


def test_atoms_as_many_as_outputs_reach_the_least_squares_answer():
    inputs, kept = random(50, 5, seed=0), torch.tensor([1, 2, 4])
    target, slim = random(2, 5, seed=1), random(2, 3, seed=2)
    carried = Bag(torch.zeros(2, 3), torch.zeros(2, 2))
    found = closest(*misses(target, 100 * inputs, kept, slim), carried)
    best = torch.linalg.lstsq(inputs[:, kept], inputs @ target.T).solution.T
    torch.testing.assert_close(slim + found.delta, best, rtol=0.05, atol=0.05)


def test_a_token_counts_for_what_is_said_after_it_and_padding_and_sinks_not_at_all():
    text = OwnText.of_rows([([4, 5, 6, 7], 2), ([8, 9], 2)], sink_tokens=1)
    assert text.ids_ST.tolist() == [[4, 5, 6, 7], [8, 9, 0, 0]]
    assert text.weights_ST.tolist() == [[0, 1, 1, 1], [0, 1, 0, 0]]
    late = OwnText.of_rows([([4, 5, 6, 7], 3)], sink_tokens=0)
    assert late.weights_ST.tolist() == [[pytest.approx(0.2), pytest.approx(0.2), 1, 1]]


def test_a_bound_on_tokens_takes_rows_from_all_over_the_text():
    text = OwnText.of_rows([([i, i], 1) for i in range(1, 9)], sink_tokens=0)
    assert text.at_most(8).ids_ST[:, 0].tolist() == [1, 3, 5, 7]
    assert text.at_most(1).ids_ST[:, 0].tolist() == [1]
    assert text.at_most(100) is text


@pytest.fixture(scope="module")
def adapter(dense_base: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(dense_base("llama"), dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=list(LINEARS))
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn_like(parameter)
    directory = tmp_path_factory.mktemp("adapter")
    adapted.save_pretrained(directory)
    (directory / "calibration.jsonl").write_text(ROWS)
    return directory


@pytest.fixture
def carried(dense_base: Callable[[str], Path], adapter: Path, tmp_path: Path) -> Any:
    """Run a job's stages up to the carry; its work directory."""
    (tmp_path / "text").write_text(TEXT)

    def run(how: str, name: str, **changes: Any) -> Path:
        recipe = {
            "name": "slim",
            "base": "dense",
            "target": 0.3,
            "ffn_multiple": 4,
            "criterion": {"name": "obs"},
            "recovery": [{"name": "closed_form"}],
            "carry": how,
            "calibration": {"file": "file-1", "sequences": 6, "length": 32},
            "evaluation": {"file": "file-2", "sequences": 4, "length": 32},
        }
        spec = PruneSpec(
            recipe=Recipe.model_validate({**recipe, **changes}),
            base=dense_base("llama"),
            adapters={"counting": adapter, "again": adapter},
            calibration=tmp_path / "text",
            evaluation=tmp_path / "text",
        )
        work = tmp_path / name
        work.mkdir()
        for stage in ("calibrate", "plan", "slice", "recover", "carry"):
            STAGES[stage](spec, work, lambda fraction, message: None)
        return work

    return run


@pytest.fixture(scope="module")
def cut_base(
    dense_base: Callable[[str], Path], even_plan: Plan, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Cut, Path]:
    """A cut and the weights of its slim base."""
    checkpoint, out = Checkpoint(dense_base("llama")), tmp_path_factory.mktemp("cut") / "model"
    config = slim_config(checkpoint.config, even_plan, "auto")
    slice_base(
        checkpoint, even_plan, config, Statistics(), out, lambda fraction, message: None, None
    )
    cut = Cut(checkpoint.geometry, even_plan, Geometry.from_config(config), "slim")
    return cut, out / "model.safetensors"


def files(work: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    directory = work / "carry" / "adapters" / "counting"
    config = json.loads((directory / "adapter_config.json").read_text())
    return load_file(directory / "adapter_model.safetensors"), config


@torch.inference_mode()
def first_attention(base: Path, adapter: Path, ids: Tensor) -> Tensor:
    """What it adds to the hidden states; (sequences, tokens, hidden)."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted, seen = PeftModel.from_pretrained(model, adapter).eval(), []
    module = adapted.base_model.model.model.layers[0].self_attn.o_proj
    module.register_forward_hook(lambda _, inputs, output: seen.append(output))
    adapted(ids)
    return seen[0]


def test_a_refit_adapter_has_the_names_shapes_and_config_of_a_projected_one(carried: Any):
    (projected, config), (refit, refit_config) = (
        files(carried(how, how)) for how in ("project", "refit")
    )
    assert refit_config == config
    assert {n: (t.shape, t.dtype) for n, t in refit.items()} == {
        n: (t.shape, t.dtype) for n, t in projected.items()
    }
    changed = {
        name.split(".")[-3] for name in refit if not torch.equal(refit[name], projected[name])
    }
    assert changed == {"o_proj", "down_proj"}


def test_on_rows_like_its_own_a_refit_adapter_is_closer_to_the_dense_base_with_its_adapter(
    carried: Any, dense_base: Callable[[str], Path], adapter: Path
):
    works = [carried(how, how, export="uniform") for how in ("project", "refit")]
    encode = load_tokenizer(dense_base("llama")).encode
    ids = torch.tensor([[256, *encode(f"{i} and {i} is {2 * i}.")] for i in range(41, 50)])
    dense = first_attention(dense_base("llama"), adapter, ids)
    projected, refit = (
        first_attention(w / "recover" / "model", w / "carry" / "adapters" / "counting", ids)
        for w in works
    )
    assert (refit - dense).square().mean() < 0.9 * (projected - dense).square().mean()


def test_every_adapter_of_a_job_is_refit_alone_and_always_the_same_way(carried: Any):
    works = [carried("refit", name) for name in ("one", "two")]
    assert tree_digest(works[0] / "carry") == tree_digest(works[1] / "carry")
    adapters = works[0] / "carry" / "adapters"
    assert tree_digest(adapters / "counting") == tree_digest(adapters / "again")
    assert sorted(path.name for path in (works[0] / "carry").iterdir()) == ["adapters"]


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000), ranks=st.lists(st.integers(1, 5), min_size=2, max_size=4))
def test_in_company_an_adapter_is_refit_as_it_is_alone(
    seed: int, ranks: list[int], dense_base: Callable[[str], Path], cut_base: tuple[Cut, Path]
):
    cut, slim = cut_base
    adapters, texts = dict[str, Adapter](), dict[str, OwnText]()
    for number, rank in enumerate(ranks):
        bags = {
            (layer, linear): Bag(
                random(rank, inputs, seed=seed + rank), random(outputs, rank, seed=seed)
            )
            for layer in range(4)
            for linear in LINEARS
            for outputs, inputs in [cut.dense.linear_shape(layer, linear) or (0, 0)]
        }
        adapters[f"{number}"] = adapter_of({key: scale(bag, 0.1) for key, bag in bags.items()})
        rows = [([256, *range(i, i + length)], 2) for i, length in enumerate([9, 4, number + 2])]
        texts[f"{number}"] = OwnText.of_rows(rows, sink_tokens=0).by_length()

    def refit(*names: str) -> dict[str, Adapter]:
        with TemporaryDirectory() as state:
            return refit_adapters(
                {name: adapters[name] for name in names},
                texts,
                Checkpoint(dense_base("llama")),
                cut,
                slim,
                Path(state),
                lambda fraction, message: None,
            )

    together = refit(*adapters)
    for name in adapters:
        (alone,) = refit(name).values()
        for key, atoms in alone.atoms.items():
            torch.testing.assert_close(together[name].atoms[key].a, atoms.a)
            torch.testing.assert_close(together[name].atoms[key].b, atoms.b)


def test_an_adapter_passes_the_slim_base_as_it_is_with_writers_of_its_own(
    dense_base: Callable[[str], Path], cut_base: tuple[Cut, Path], tmp_path: Path
):
    cut, weights = cut_base
    slim = tmp_path / "slim"
    shutil.copytree(weights.parent, slim)
    tensors = load_file(weights)
    for seed, name in enumerate(sorted(tensors)):
        if name.split(".")[-2] in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
            tensors[name] *= 1 + 0.3 * random(*tensors[name].shape, seed=seed)
    save_file(tensors, slim / "model.safetensors", metadata={"format": "pt"})
    bags = {
        (layer, linear): Bag(random(2, inputs, seed=layer), 0.1 * random(outputs, 2, seed=9))
        for layer in range(4)
        for linear in LINEARS
        for outputs, inputs in [cut.dense.linear_shape(layer, linear) or (0, 0)]
    }
    text = OwnText.of_rows([([256, *range(20)], 2), ([256, *range(40, 60)], 2)], sink_tokens=0)
    (refit,) = refit_adapters(
        {"own": adapter_of(bags)},
        {"own": text},
        Checkpoint(dense_base("llama")),
        cut,
        slim / "model.safetensors",
        tmp_path / "state",
        lambda fraction, message: None,
    ).values()
    model, seen = AutoModelForCausalLM.from_pretrained(slim, dtype=torch.float32), list[Tensor]()
    for (layer, linear), bag in bags_of(refit).items():
        module = model.get_submodule(f"model.layers.{layer}.{block_of(linear)}.{linear}")
        module.weight.data += bag.delta
    model.model.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        model(text.ids_ST)
    passed = torch.from_file(
        str(tmp_path / "state" / "own" / "slim" / "states-4.f32"), size=seen[0].numel()
    )
    torch.testing.assert_close(passed.view_as(seen[0]), seen[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("count", "tokens"), [(1, 16384), (16, 1024), (32, 512), (100, 512)])
def test_adapters_share_half_of_the_calibration_tokens_and_have_512_at_least(
    count: int, tokens: int
):
    text = {"file": "file-1"}  # 128 sequences of 256 tokens
    recipe = {"name": "slim", "base": "dense", "target": 0.3, "calibration": text}
    spec = PruneSpec(
        recipe=Recipe.model_validate({**recipe, "evaluation": text}),
        base=Path("base"),
        adapters={str(number): Path("adapter") for number in range(count)},
        calibration=Path("text"),
        evaluation=Path("text"),
    )
    assert share_of_budget(spec) == tokens


def test_padding_is_not_run_and_changes_nothing(tmp_path: Path, dense_base: Callable[[str], Path]):
    checkpoint, blocks = Checkpoint(dense_base("llama")), Blocks(Checkpoint(dense_base("llama")))
    text = OwnText.of_rows([([1, 2, 3, 4, 5, 6, 7], 2), ([8, 9], 1), ([3, 4, 5], 1)], sink_tokens=0)
    assert text.by_length().ids_ST.tolist() == [
        [8, 9, 0, 0, 0, 0, 0],
        [3, 4, 5, 0, 0, 0, 0],
        [1, 2, 3, 4, 5, 6, 7],
    ]
    blocks.fill(0, checkpoint.layer(0))
    sums, seen = list[Tensor](), list[tuple[int, ...]]()
    for name, rows in {"all": [0, 1, 2], "two": [1, 2], "one": [0]}.items():
        own = text.select(rows)
        passage = Passage(checkpoint, own.ids_ST, own.weights_ST > 0, tmp_path / name)
        seen += [inputs.shape for _, inputs in passage.inputs(blocks, "kv_group")]
        sums.append(passage.gram(blocks, "kv_group").products_CC)
    assert seen == [(3, 7, 32), (2, 3, 32), (1, 7, 32)]
    torch.testing.assert_close(sums[0], sums[1] + sums[2], rtol=1e-5, atol=1e-5)


def test_atoms_that_a_narrow_reader_has_no_use_for_are_zero():
    inputs, kept = random(20, 3, seed=0), torch.tensor([1, 2])
    carried = Bag(random(5, 2, seed=1), random(4, 5, seed=2))
    found = closest(*misses(random(4, 3, seed=3), inputs, kept, random(4, 2, seed=4)), carried)
    assert (found.a_RI.shape, found.b_OR.shape) == ((5, 2), (4, 5))
    assert not found.a_RI[2:].any()


def test_without_rows_of_its_own_an_adapter_is_refit_on_the_calibration_text(
    carried: Any, adapter: Path, tmp_path: Path
):
    on_rows, _ = files(carried("refit", "rows"))
    rows = adapter / "calibration.jsonl"
    content = rows.read_text()
    rows.unlink()
    try:
        on_text, _ = files(carried("refit", "no rows"))
    finally:
        rows.write_text(content)
    assert any(not torch.equal(on_rows[name], on_text[name]) for name in on_rows)


def test_layers_that_lost_a_block_are_passed_by(carried: Any):
    tensors, _ = files(carried("refit", "work", blocks={"attention": 1, "mlp": 1}, target=0.4))
    assert sum("o_proj.lora_A" in name for name in tensors) == 3
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_it_cannot_follow_a_recovery_that_changes_other_linears(
    dense_base: Callable[[str], Path],
):
    text = {"file": "file-1"}
    recipe = Recipe.model_validate(
        {
            "name": "slim",
            "base": "dense",
            "target": 0.3,
            "recovery": [{"name": "distill"}],
            "carry": "refit",
            "calibration": text,
            "evaluation": text,
        }
    )
    with pytest.raises(InvalidInput, match="cannot follow distill"):
        budget.check(Checkpoint(dense_base("llama")).geometry, recipe)
