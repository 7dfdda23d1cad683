"""Base directories: can this be pruned and served?  Torch-free, decided from headers alone."""

import json
from pathlib import Path
from typing import Any

from pruning.adapters.peft_format import PICKLES
from pruning.errors import InvalidInput
from pruning.geometry import Geometry
from pruning.weights.header import FLOATS, TensorInfo, read_header
from pruning.weights.tensors import expected

_INDEX = "model.safetensors.index.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_WIDTH_LIMIT = 1 << 24
_LAYER_LIMIT = 1 << 10
_WIDTHS = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")


def read_base(directory: Path, field: str = "path") -> Geometry:
    """The geometry of a checkpoint whose tensors are exactly what its config.json says.

    Raises InvalidInput, naming the file or the tensor, when the directory is no such thing.
    """
    if not directory.is_dir():
        raise InvalidInput(field, f"there is no directory {directory} on the server")
    _check_files(directory, field)
    geometry = _geometry(_object(directory / "config.json", field), field)
    tensors = _tensors(directory, field)
    for name, shape in expected(geometry):
        tensor = tensors.pop(name, None)
        if tensor is None:
            raise InvalidInput(field, f"tensor {name} is missing", code="invalid_base")
        if tensor.shape != shape or tensor.dtype not in FLOATS:
            raise InvalidInput(
                field,
                f"tensor {name} is {tensor.dtype} {tensor.shape} where config.json asks for "
                f"{shape} of {', '.join(FLOATS)}",
                code="invalid_base",
            )
    if unknown := [name for name in tensors if not _ignored(name, geometry)]:
        raise InvalidInput(field, f"config.json knows no tensor {unknown[0]}", code="invalid_base")
    return geometry


def _check_files(directory: Path, field: str) -> None:
    names = {path.name for path in directory.iterdir() if path.is_file()}
    if pickles := sorted(name for name in names if Path(name).suffix in PICKLES):
        raise InvalidInput(
            field,
            f"{', '.join(pickles)}: pickled weights can run code and are never read; keep only "
            "the safetensors files, or convert with save_pretrained(safe_serialization=True)",
            code="pickle_refused",
        )
    needed = (("config.json",), ("model.safetensors", _INDEX), _TOKENIZERS)
    for choice in needed:
        if not names & set(choice):
            raise InvalidInput(field, f"{' or '.join(choice)} is missing", code="missing_file")


def _object(path: Path, field: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInput(field, f"{path.name} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise InvalidInput(field, f"{path.name} must hold an object")
    return value


def _geometry(config: dict[str, Any], field: str) -> Geometry:
    limits = {**dict.fromkeys(_WIDTHS, _WIDTH_LIMIT), "num_hidden_layers": _LAYER_LIMIT}
    for name, limit in limits.items():
        value = config.get(name, 1)
        if type(value) is not int or not 1 <= value <= limit:
            raise InvalidInput(field, f"{name} in config.json must be from 1 to {limit}")
    try:
        return Geometry.from_config(config, field)
    except InvalidInput:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidInput(field, f"config.json cannot be understood: {error}") from error


def _tensors(directory: Path, field: str) -> dict[str, TensorInfo]:
    shards = [directory / "model.safetensors"]
    if (directory / _INDEX).is_file():
        weight_map = _object(directory / _INDEX, field).get("weight_map")
        if not isinstance(weight_map, dict):
            raise InvalidInput(field, f"{_INDEX} has no weight_map")
        shards = [
            directory / name for name in sorted({_plain(v, field) for v in weight_map.values()})
        ]
    return {name: info for shard in shards for name, info in read_header(shard, field).items()}


def _plain(name: object, field: str) -> str:
    if not isinstance(name, str) or Path(name).name != name:
        raise InvalidInput(field, f"{name!r} in {_INDEX} is not a plain file name")
    return name


def _ignored(name: str, geometry: Geometry) -> bool:
    """Tensors that loaders compute for themselves."""
    return name.endswith(".rotary_emb.inv_freq") or (geometry.tied and name == "lm_head.weight")
