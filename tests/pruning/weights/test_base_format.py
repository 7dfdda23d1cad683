"""Bases: a checkpoint is taken only when its tensors are what its config.json says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pruning.architectures.llama import LINEARS
from pruning.errors import InvalidInput
from pruning.weights.base_format import read_base

Q = "model.layers.1.self_attn.q_proj.weight"


def refusal(directory: Path) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        read_base(directory)
    assert caught.value.field == "path"
    return caught.value


def configure(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def damage(directory: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def test_the_geometry_of_a_sound_base_is_returned(base_directory: Path):
    geometry = read_base(base_directory)
    assert (geometry.family, len(geometry.layers), geometry.tied) == ("llama", 2, True)


@pytest.mark.parametrize("tied", [True, False])
def test_the_header_declares_as_many_parameters_as_the_geometry_predicts(
    tmp_path: Path, write_base: Callable[..., Path], tied: bool
):
    directory = write_base(tmp_path / "sound", tie_word_embeddings=tied)
    tensors = load_file(directory / "model.safetensors")
    assert sum(t.size for t in tensors.values()) == read_base(directory).parameters


def test_a_sharded_base_is_read_through_its_index(base_directory: Path):
    tensors = load_file(base_directory / "model.safetensors")
    (base_directory / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"one.safetensors": names[:5], "two.safetensors": names[5:]}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, base_directory / shard)
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    index = base_directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert len(read_base(base_directory).layers) == 2
    index.write_text(json.dumps({"weight_map": {**weight_map, names[0]: "../one.safetensors"}}))
    assert "'../one.safetensors'" in refusal(base_directory).message


def test_a_layer_without_attention_has_no_tensors_of_it(base_directory: Path):
    configure(
        base_directory,
        model_type="slim_llama",
        per_layer_config={"1": {"skip": ["self_attn"]}},
    )
    assert "model.layers.1.input_layernorm.weight" in refusal(base_directory).message
    gone = ["input_layernorm", *(f"self_attn.{linear}" for linear in LINEARS[:4])]
    damage(base_directory, lambda t: [t.pop(f"model.layers.1.{name}.weight") for name in gone])
    assert read_base(base_directory).layers[1].num_heads == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(lambda t: t.pop(Q), [Q, "missing"], id="tensor missing"),
        pytest.param(
            lambda t: t.update({Q: t[Q][:8]}), [Q, "(8, 16)", "(16, 16)"], id="tensor too small"
        ),
        pytest.param(
            lambda t: t.update({Q: t[Q].astype(np.int8)}), [Q, "I8"], id="quantised tensor"
        ),
        pytest.param(
            lambda t: t.update({Q.replace("weight", "bias"): t[Q][0]}),
            ["q_proj.bias"],
            id="tensor too many",
        ),
    ],
)
def test_a_tensor_that_config_json_does_not_describe_is_named(
    base_directory: Path, change: Callable[[dict[str, np.ndarray]], Any], said: list[str]
):
    damage(base_directory, change)
    message = refusal(base_directory).message
    assert all(words in message for words in said), message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "gpt2"}, "'gpt2' is not supported; supported families: llama"),
        ({"model_type": None}, "not supported"),
        ({"hidden_size": "16"}, "hidden_size"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"per_layer_config": [1]}, "config.json cannot be understood"),
    ],
)
def test_a_config_that_cannot_be_served_is_refused(
    base_directory: Path, changes: dict[str, Any], said: str
):
    configure(base_directory, **changes)
    assert said in refusal(base_directory).message


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(base_directory: Path, file: str):
    (base_directory / file).unlink()
    assert file in refusal(base_directory).message


def test_pickled_weights_are_refused_even_beside_safetensors(base_directory: Path):
    (base_directory / "pytorch_model.bin").write_bytes(b"pickle")
    error = refusal(base_directory)
    assert error.code == "pickle_refused"
    assert "pytorch_model.bin" in error.message


def test_a_directory_that_is_not_there_is_named(tmp_path: Path):
    assert str(tmp_path / "nowhere") in refusal(tmp_path / "nowhere").message
