"""Writes a slim base anew with other weights: names, shapes, dtypes and all other files stay."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pruning.weights.header import TensorInfo, read_header
from pruning.weights.writer import DTYPES, Entry, write

WEIGHTS = "model.safetensors"


def rewrite(source: Path, destination: Path, tensor: Callable[[str], Tensor]) -> None:
    """Copy the slim base in `source`, its tensors replaced by `tensor(name)`, cast to their dtype.

    Tensors that are what they were give the same bytes.
    """
    destination.mkdir(parents=True)
    for path in source.iterdir():
        if path.name != WEIGHTS:
            shutil.copyfile(path, destination / path.name)
    entries = [
        _entry(name, info, tensor) for name, info in read_header(source / WEIGHTS, "base").items()
    ]
    write(destination / WEIGHTS, entries, lambda fraction: None)


def _entry(name: str, info: TensorInfo, tensor: Callable[[str], Tensor]) -> Entry:
    dtype = DTYPES[info.dtype]
    return Entry(name, dtype, info.shape, partial(_cast, tensor, name, dtype))


def _cast(tensor: Callable[[str], Tensor], name: str, dtype: torch.dtype) -> Tensor:
    return tensor(name).detach().to("cpu", dtype)
