"""Merging from files: other ranks, modules and bases, read linear by linear, loaded by PEFT."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from pruning import registry
from pruning.adapters import algebra, atoms
from pruning.adapters.algebra import Bag
from pruning.adapters.atoms import Key
from pruning.adapters.carry import project
from pruning.adapters.compression import applied
from pruning.adapters.merging import Merged, merge_all
from pruning.adapters.peft_format import read_adapter
from pruning.adapters.source import Descent, Source, open_source
from pruning.architectures.llama import LINEARS
from pruning.errors import InvalidInput
from pruning.evaluation import load
from pruning.export import slim_config
from pruning.geometry import Geometry
from pruning.plan import Plan
from pruning.recipe import Method
from pruning.weights.checkpoint import Checkpoint

Train = Callable[..., Path]


@pytest.fixture
def base(dense_base: Callable[[str], Path]) -> Path:
    return dense_base("llama")


@pytest.fixture
def geometry(base: Path) -> Geometry:
    return Checkpoint(base).geometry


@pytest.fixture
def train(base: Path, tmp_path: Path) -> Train:
    """A PEFT directory of random atoms, as PEFT writes it."""

    def make(name: str, seed: int, **changes: Any) -> Path:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        config = {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": list(LINEARS),
            "task_type": "CAUSAL_LM",
        }
        adapted = get_peft_model(model, LoraConfig(**{**config, **changes}))
        for parameter_name, parameter in adapted.named_parameters():
            if "lora_" in parameter_name:
                parameter.data = 0.2 * torch.randn_like(parameter)
        adapted.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture
def several(train: Train, geometry: Geometry) -> list[Source]:
    """Adapters that agree in nothing: ranks, alphas, rsLoRA, linears, layers."""
    directories = {
        "a": train("a", 1),
        "b": train("b", 2, r=3, use_rslora=True, target_modules=["q_proj", "down_proj"]),
        "c": train("c", 3, r=2, lora_alpha=6, layers_to_transform=[1, 3]),
        "d": train("d", 4, rank_pattern={"up_proj": 5}, alpha_pattern={"q_proj": 3}),
    }
    return [open_source(name, path, geometry) for name, path in directories.items()]


WEIGHTS = {"a": 1.0, "b": -0.5, "c": 0.7, "d": 0.2}


def merged(
    sources: list[Source], name: str, weights: Mapping[str, float] = WEIGHTS, **params: Any
) -> dict[Key, Merged]:
    function, _, checked = registry.merge(Method(name=name, params=params))
    return {key: found for key, found, _ in merge_all(sources, weights, function, checked, 0)}


def bags(found: Mapping[Key, Merged]) -> dict[Key, Bag]:
    return {key: linear.bag for key, linear in found.items()}


def logits(base: Path, adapter: Path, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return PeftModel.from_pretrained(load(base), adapter).eval()(ids).logits


def test_what_cat_writes_does_in_peft_what_the_sum_of_the_files_does(
    several: list[Source], base: Path, geometry: Geometry, ids: Tensor, tmp_path: Path
):
    model = load(base)
    with torch.no_grad():
        bare = model(ids).logits
        for source in several:  # summed up by PEFT's own arithmetic
            adapted = PeftModel.from_pretrained(load(base), source.weights.parent)
            deltas = adapted.merge_and_unload().state_dict()
            for name, weight in model.state_dict().items():
                untouched = load_file(base / "model.safetensors").get(name)
                if untouched is not None:
                    weight += WEIGHTS[source.name] * (deltas[name] - untouched)
        wanted = model(ids).logits
    adapter = algebra.adapter_of(bags(merged(several, "cat")))
    atoms.write(adapter, tmp_path / "out", geometry, "base")
    read_adapter(tmp_path / "out", geometry)
    found = logits(base, tmp_path / "out", ids)
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert (found - bare).abs().max() > 1e-2 * wanted.abs().max()


@pytest.mark.parametrize("name", ["lego", "knots", "ties", "linear"])
def test_what_is_written_is_what_was_merged(
    name: str, several: list[Source], base: Path, geometry: Geometry, ids: Tensor, tmp_path: Path
):
    found = bags(merged(several, name))
    atoms.write(algebra.adapter_of(found), tmp_path / "out", geometry, "base")
    model = load(base)
    with applied(model, {key: bag.delta for key, bag in found.items()}), torch.no_grad():
        wanted = model(ids).logits
    assert torch.allclose(logits(base, tmp_path / "out", ids), wanted, atol=1e-4)


def test_applying_leaves_the_base_as_it_was(several: list[Source], base: Path):
    model = load(base)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with applied(model, {key: bag.delta for key, bag in bags(merged(several, "cat")).items()}):
        changed = sum(not torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert changed == 28
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_order_of_the_sources_changes_not_a_bit(several: list[Source]):
    for name in ("lego", "dare_ties", "svd"):
        one, other = merged(several, name), merged(several[::-1], name)
        for key in one:
            assert torch.equal(one[key].bag.a_RI, other[key].bag.a_RI)
            assert torch.equal(one[key].bag.b_OR, other[key].bag.b_OR)


def test_a_linear_that_one_source_has_is_that_of_the_source(several: list[Source]):
    a, c = several[0], several[2]
    found = merged([a, c], "lego", k=4)
    assert torch.allclose(found[0, "q_proj"].bag.delta, a.bag((0, "q_proj")).delta, atol=1e-5)


def test_every_atom_of_lego_tells_where_it_comes_from(several: list[Source]):
    for linear in merged(several, "lego", k=3).values():
        assert len(linear.origins) == linear.bag.rank
        for own in linear.origins:
            assert sum(origin.share for origin in own) == pytest.approx(1)


def test_adapters_of_different_slim_bases_meet_in_their_parent(
    train: Train,
    geometry: Geometry,
    base: Path,
    even_plan: Plan,
    uneven_plan: Plan,
    tmp_path: Path,
):
    """Cut by two plans, lifted and added up: what both kept counts twice, what one kept once."""
    whole = atoms.read(train("whole", 7), "adapter")
    sources = []
    for name, plan in (("even", even_plan), ("uneven", uneven_plan)):
        slim = Geometry.from_config(slim_config(Checkpoint(base).config, plan, "auto"))
        atoms.write(project(whole, geometry, plan), tmp_path / name, slim, name)
        descent = Descent(slim, geometry, plan)
        sources.append(open_source(name, tmp_path / name, geometry, descent))
    found = bags(merged(sources, "cat", {"even": 1.0, "uneven": 1.0}))
    delta = algebra.bags_of(whole)[0, "q_proj"].delta  # four rows to a head, two heads to a group
    kept = [
        sum(group in plan.layers[0].kv_groups for plan in (even_plan, uneven_plan))
        for group in range(4)
    ]
    assert kept == [1, 1, 2, 1]
    wanted = delta * torch.tensor(kept).repeat_interleave(8)[:, None]
    assert torch.allclose(found[0, "q_proj"].delta, wanted, atol=1e-5)
    assert set(found) == {(layer, linear) for layer in range(4) for linear in LINEARS}


def test_a_merge_on_one_slim_base_comes_back_to_it_unchanged(
    train: Train, geometry: Geometry, base: Path, uneven_plan: Plan, tmp_path: Path
):
    slim = Geometry.from_config(slim_config(Checkpoint(base).config, uneven_plan, "auto"))
    own = project(atoms.read(train("whole", 7), "adapter"), geometry, uneven_plan)
    atoms.write(own, tmp_path / "own", slim, "slim")
    source = open_source("own", tmp_path / "own", geometry, Descent(slim, geometry, uneven_plan))
    lifted = algebra.adapter_of(bags(merged([source], "cat", {"own": 1.0})))
    back = algebra.bags_of(project(lifted, geometry, uneven_plan))
    for key, bag in algebra.bags_of(own).items():
        assert torch.equal(back[key].a_RI, bag.a_RI)
        assert torch.equal(back[key].b_OR, bag.b_OR)


def spoil(directory: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(directory / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, directory / "adapter_model.safetensors")


TENSOR = "base_model.model.model.layers.2.mlp.up_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("value", "code"),
    [
        pytest.param(torch.full((4, 32), torch.nan), "adapter_not_finite", id="NaN"),
        pytest.param(torch.ones(4, 31), "adapter_mismatch", id="another width"),
        pytest.param(torch.ones(3, 32), "adapter_mismatch", id="another rank"),
    ],
)
def test_a_broken_source_is_named_with_its_module(
    value: Tensor, code: str, train: Train, geometry: Geometry
):
    directory = train("a", 1)
    spoil(directory, lambda tensors: tensors.update({TENSOR: value}))
    with pytest.raises(InvalidInput) as refused:
        open_source("a", directory, geometry)
    assert refused.value.field == "sources.a"
    assert refused.value.code == code
    assert TENSOR in refused.value.message


def test_the_dtype_is_the_widest_of_the_file(train: Train, geometry: Geometry):
    directory = train("a", 1)
    spoil(directory, lambda t: t.update({name: tensor.half() for name, tensor in t.items()}))
    assert open_source("a", directory, geometry).dtype == torch.float16
    spoil(directory, lambda t: t.update({TENSOR: t[TENSOR].float()}))
    assert open_source("a", directory, geometry).dtype == torch.float32
