"""Writes a safetensors file tensor by tensor, so that the model is never in memory as a whole.

Format: https://huggingface.co/docs/safetensors, "Format".  The library's own writer wants all
tensors at once.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor to write: what the header says of it, and how to make it when its turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write(path: Path, entries: Sequence[Entry], done: Callable[[float], None]) -> None:
    """Write `entries` in order, wider dtypes first; `done` hears the fraction written."""
    entries = sorted(entries, key=lambda entry: -entry.dtype.itemsize)
    total = sum(entry.bytes for entry in entries)
    written = 0
    with path.open("wb") as stream:
        stream.write(_header(entries))
        for entry in entries:
            tensor = entry.make()
            assert tensor.dtype == entry.dtype, entry.name
            assert tuple(tensor.shape) == entry.shape, entry.name
            stream.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
            written += entry.bytes
            done(written / total)


def _header(entries: Sequence[Entry]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        header[entry.name] = {
            "dtype": DTYPE_NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.bytes],
        }
        offset += entry.bytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded
