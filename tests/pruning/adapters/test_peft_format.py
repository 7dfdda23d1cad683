"""PEFT adapters: what fits is described, and every kind of damage is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from pruning.adapters.peft_format import read_adapter
from pruning.errors import InvalidInput
from pruning.geometry import Geometry

ROOT = "base_model.model.model.layers"
A = f"{ROOT}.1.mlp.up_proj.lora_A.weight"  # (2, 16)
B = f"{ROOT}.0.self_attn.k_proj.lora_B.weight"  # (8, 2)

Tensors = dict[str, np.ndarray]


@pytest.fixture
def geometry(base_directory: Path) -> Geometry:
    return Geometry.from_config(json.loads((base_directory / "config.json").read_text()))


def damage(directory: Path, change: Callable[[Tensors], Any]) -> None:
    weights = directory / "adapter_model.safetensors"
    tensors = load_file(weights)
    change(tensors)
    save_file(tensors, weights)


def declare(directory: Path, name: str, **changes: Any) -> None:
    weights = directory / "adapter_model.safetensors"
    content = weights.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header[name] |= changes
    text = json.dumps(header).encode()
    weights.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


def configure(directory: Path, **changes: Any) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(directory: Path, geometry: Geometry, max_rank: int | None = None) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        read_adapter(directory, geometry, max_rank)
    return caught.value


def test_an_adapter_that_fits_is_described(adapter_directory: Path, geometry: Geometry):
    info = read_adapter(adapter_directory, geometry)
    assert info.rank == 2
    assert len(info.modules) == 14
    assert info.modules[0] == "model.layers.0.mlp.down_proj"
    assert info.dtype == "F32"
    # per layer, rank 2 x 4 bytes x (inputs + outputs) of q, k, v, o, gate, up, down
    assert info.bytes == 2 * 2 * 4 * (32 + 24 + 24 + 32 + 40 + 40 + 40)


def test_the_digest_names_the_content(
    tmp_path: Path, geometry: Geometry, write_adapter: Callable[..., Path]
):
    one, same, other = (
        read_adapter(write_adapter(tmp_path / name, seed=seed), geometry).digest
        for name, seed in (("one", 0), ("same", 0), ("other", 1))
    )
    assert one == same != other


def test_files_that_are_no_part_of_an_adapter_do_not_count(
    adapter_directory: Path, geometry: Geometry
):
    digest = read_adapter(adapter_directory, geometry).digest
    (adapter_directory / "optimizer.pt").write_bytes(b"pickle")
    assert read_adapter(adapter_directory, geometry).digest == digest


def test_a_pattern_gives_a_module_its_own_rank(adapter_directory: Path, geometry: Geometry):
    def widen(tensors: Tensors) -> None:
        tensors[A] = np.ones((5, 16), np.float32)
        tensors[A.replace("_A", "_B")] = np.ones((24, 5), np.float32)

    damage(adapter_directory, widen)
    assert "gives this module rank 2" in refusal(adapter_directory, geometry).message
    configure(adapter_directory, rank_pattern={"layers.1.mlp.up_proj": 5})
    assert read_adapter(adapter_directory, geometry).rank == 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(lambda t: t.pop(A), [A, "missing"], id="no A"),
        pytest.param(lambda t: t.pop(B), [B, "missing"], id="no B"),
        pytest.param(
            lambda t: t.update({A: np.ones((2, 12), np.float32)}),
            [A, "(2, 12)", "(2, 16)", "another base"],
            id="narrow A",
        ),
        pytest.param(
            lambda t: t.update({B: np.ones((16, 2), np.float32)}),
            [B, "(16, 2)", "(8, 2)", "another base"],
            id="wide B",
        ),
        pytest.param(
            lambda t: t.update({B: np.ones((8, 3), np.float32)}),
            [B, "(8, 3)", "rank 2"],
            id="B of another rank",
        ),
        pytest.param(
            lambda t: t.update({A: np.ones(32, np.float32)}), [A, "(32,)"], id="A is a vector"
        ),
        pytest.param(
            lambda t: t.update({A: np.ones((2, 16), np.int32)}), [A, "I32"], id="A of integers"
        ),
        pytest.param(
            lambda t: t.update({f"{ROOT}.7.mlp.up_proj.lora_A.weight": t[A]}),
            ["layers.7", "2 layers", "another base"],
            id="too deep",
        ),
        pytest.param(
            lambda t: t.update({f"{ROOT}.1.self_attn.up_proj.lora_A.weight": t[A]}),
            ["self_attn.up_proj"],
            id="linear of the wrong block",
        ),
        pytest.param(
            lambda t: t.update({"base_model.model.lm_head.lora_A.weight": t[A]}),
            ["lm_head"],
            id="output head",
        ),
        pytest.param(
            lambda t: t.update({A.replace("lora_A", "lora_magnitude_vector"): t[A]}),
            ["lora_magnitude_vector"],
            id="not A or B",
        ),
        pytest.param(lambda t: t[A].__setitem__((1, 3), np.nan), [A, "NaN"], id="NaN"),
        pytest.param(lambda t: t[B].__setitem__((7, 1), -np.inf), [B, "NaN"], id="infinity"),
        pytest.param(lambda t: t.clear(), ["no tensors"], id="empty"),
    ],
)
def test_a_damaged_tensor_is_named(
    adapter_directory: Path, geometry: Geometry, change: Callable[[Tensors], Any], said: list[str]
):
    damage(adapter_directory, change)
    message = str(refusal(adapter_directory, geometry))
    assert all(words in message for words in said), message


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_tensor_can_be_lost_or_change_its_shape_unnoticed(
    adapter_directory: Path, geometry: Geometry, data: st.DataObject
):
    weights = adapter_directory / "adapter_model.safetensors"
    whole = weights.read_bytes()
    tensors = load_file(weights)
    name = data.draw(st.sampled_from(sorted(tensors)))
    shape = data.draw(st.none() | st.lists(st.integers(0, 30), min_size=1, max_size=3).map(tuple))
    expected = tensors.pop(name).shape
    if shape is not None:
        tensors[name] = np.ones(shape, np.float32)
    save_file(tensors, weights)
    if shape != expected:
        assert name in str(refusal(adapter_directory, geometry))
    weights.write_bytes(whole)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_a_nan_is_found_in_every_dtype(
    adapter_directory: Path, geometry: Geometry, dtype: type[np.floating[Any]]
):
    damage(adapter_directory, lambda t: t.update({A: t[A].astype(dtype)}))
    read_adapter(adapter_directory, geometry)
    damage(adapter_directory, lambda t: t[A].__setitem__((0, 0), np.nan))
    assert A in str(refusal(adapter_directory, geometry))


@pytest.mark.parametrize(
    ("bits", "finite"),
    [(0x3F80, True), (0xFF7F, True), (0x0001, True), (0x7F80, False), (0xFFC0, False)],
)
def test_bfloat16_is_judged_by_its_exponent(
    adapter_directory: Path, geometry: Geometry, bits: int, finite: bool
):
    damage(adapter_directory, lambda t: t.update({A: np.full((2, 16), bits, np.uint16)}))
    declare(adapter_directory, A, dtype="BF16")
    if finite:
        assert read_adapter(adapter_directory, geometry).dtype == "BF16+F32"
    else:
        assert A in str(refusal(adapter_directory, geometry))


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("peft_type", "IA3"),
        ("peft_type", None),
        ("use_dora", True),
        ("lora_bias", True),
        ("bias", "all"),
        ("modules_to_save", ["lm_head"]),
        ("trainable_token_indices", [1]),
        ("target_parameters", ["mlp.experts.gate_up_proj"]),
        ("layer_replication", [[0, 2], [1, 2]]),
        ("alora_invocation_tokens", [5]),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("r", 0),
        ("r", "8"),
        ("r", True),
        ("lora_alpha", -1),
        ("lora_alpha", None),
        ("lora_alpha", float("nan")),
        ("rank_pattern", {"up_proj": 0}),
        ("rank_pattern", ["up_proj"]),
        ("rank_pattern", {"(a+)+": 2}),
        ("alpha_pattern", {"up_proj": "high"}),
    ],
)
def test_what_is_no_plain_lora_is_refused_by_the_name_of_the_entry(
    adapter_directory: Path, geometry: Geometry, entry: str, value: Any
):
    configure(adapter_directory, **{entry: value})
    assert refusal(adapter_directory, geometry).field == f"adapter.{entry}"


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal"])
def test_inits_that_leave_the_base_alone_are_accepted(
    adapter_directory: Path, geometry: Geometry, init: Any
):
    configure(adapter_directory, init_lora_weights=init, use_rslora=True)
    assert read_adapter(adapter_directory, geometry).rank == 2


def test_a_rank_above_the_limit_is_refused_with_the_limit(
    adapter_directory: Path, geometry: Geometry
):
    read_adapter(adapter_directory, geometry, max_rank=2)
    error = refusal(adapter_directory, geometry, max_rank=1)
    assert error.field == "adapter.r"
    assert "limit of 1" in error.message


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_config_that_is_no_object_is_refused(
    adapter_directory: Path, geometry: Geometry, content: bytes
):
    (adapter_directory / "adapter_config.json").write_bytes(content)
    assert "adapter_config.json" in refusal(adapter_directory, geometry).message


@pytest.mark.parametrize("pickle", ["adapter_model.bin", "adapter_model.pt", "weights.pkl"])
def test_pickled_weights_are_refused_as_such(
    adapter_directory: Path, geometry: Geometry, pickle: str
):
    (adapter_directory / "adapter_model.safetensors").rename(adapter_directory / pickle)
    error = refusal(adapter_directory, geometry)
    assert error.code == "pickle_refused"
    assert pickle in error.message


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(adapter_directory: Path, geometry: Geometry, file: str):
    (adapter_directory / file).unlink()
    assert file in refusal(adapter_directory, geometry).message


def test_a_layer_without_the_block_takes_no_adapter_for_it(
    adapter_directory: Path, base_directory: Path
):
    config = json.loads((base_directory / "config.json").read_text())
    slim = Geometry.from_config({**config, "per_layer_config": {"1": {"skip": ["mlp"]}}})
    error = refusal(adapter_directory, slim)
    assert "layer 1 of the base does not have" in error.message
