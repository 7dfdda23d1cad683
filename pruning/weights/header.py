"""Read what a safetensors file declares, without loading it and without trusting it (torch-free).

Format: https://huggingface.co/docs/safetensors, "Format".
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pruning.errors import InvalidInput

HEADER_LIMIT = 8 << 20  # bytes; a 126-layer checkpoint in one file declares itself in about 0.2 MB
_CHUNK = 1 << 22  # elements looked at together
_ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}
FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
_BF16_EXPONENT = 0x7F80  # all ones: infinite or not a number


@dataclass(frozen=True)
class TensorInfo:
    """One declared tensor; `offset` counts from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.size * _ITEM_BYTES[self.dtype]


def tensor_bytes(*paths: Path) -> int:
    """Bytes of all tensors of some files, their headers not counted."""
    return sum(info.bytes for path in paths for info in read_header(path, "base").values())


def read_header(path: Path, field: str) -> dict[str, TensorInfo]:
    """Every tensor that the file declares, by name.

    Raises InvalidInput on `field` when the file is no safetensors file, its header is larger than
    HEADER_LIMIT, or what it declares is not exactly what the file holds.
    """
    try:
        return _read(path)
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInput(
            field, f"{path.name} is not a valid safetensors file: {error}", code="invalid_file"
        ) from error


def all_finite(path: Path, tensor: TensorInfo) -> bool:
    """Whether a floating-point tensor holds neither NaN nor infinity."""
    for start in range(0, tensor.size, _CHUNK):
        values = np.fromfile(
            path,
            FLOATS[tensor.dtype],
            count=min(_CHUNK, tensor.size - start),
            offset=tensor.offset + start * _ITEM_BYTES[tensor.dtype],
        )
        finite = (
            (values & _BF16_EXPONENT) != _BF16_EXPONENT
            if tensor.dtype == "BF16"
            else np.isfinite(values)
        )
        if not finite.all():
            return False
    return True


def _read(path: Path) -> dict[str, TensorInfo]:
    total = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or 8 + length > total:
            raise ValueError("it is truncated")
        if length > HEADER_LIMIT:
            raise ValueError(f"its header of {length} bytes exceeds {HEADER_LIMIT}")
        header = json.loads(stream.read(length), object_pairs_hook=_without_repeats)
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    header.pop("__metadata__", None)
    tensors = {name: _tensor(name, entry, 8 + length) for name, entry in header.items()}
    _check_layout(tensors, 8 + length, total)
    return tensors


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("its header repeats a name")
    return entries


def _tensor(name: str, entry: Any, data: int) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            pass
        case _:
            raise ValueError(f"the entry of tensor {name!r} is malformed")
    if dtype not in _ITEM_BYTES:
        raise ValueError(f"tensor {name!r} has unknown dtype {dtype!r}")
    if not all(type(width) is int and width >= 0 for width in shape):
        raise ValueError(f"tensor {name!r} has shape {shape}")
    tensor = TensorInfo(dtype, tuple(shape), data + begin)
    if begin < 0 or tensor.bytes != end - begin:
        raise ValueError(f"tensor {name!r} does not fill its data_offsets")
    return tensor


def _check_layout(tensors: dict[str, TensorInfo], data: int, total: int) -> None:
    position = data
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.bytes)):
        if tensor.offset != position:
            raise ValueError("its tensors overlap or leave gaps")
        position += tensor.bytes
    if position != total:
        raise ValueError(f"it has {total} bytes where its header declares {position}")
