"""An adapter on disk, one linear at a time, in the coordinates of the base that it shall serve."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruning.adapters.algebra import Bag, fold
from pruning.adapters.atoms import Atoms, Key, alpha_of, key_of
from pruning.adapters.carry import lift_linear
from pruning.adapters.peft_config import CONFIG, read_config
from pruning.adapters.peft_format import WEIGHTS, read_adapter
from pruning.geometry import Geometry
from pruning.plan import Plan
from pruning.weights.header import TensorInfo, read_header
from pruning.weights.writer import DTYPES


@dataclass(frozen=True)
class Descent:
    """A slim base that an adapter was trained on, and the plan that cut it out of `dense`."""

    slim: Geometry
    dense: Geometry
    plan: Plan


@dataclass(frozen=True)
class Source:
    """A checked PEFT directory; nothing of its weights is held."""

    name: str
    config: Mapping[str, Any]
    weights: Path
    tensors: Mapping[Key, Mapping[str, TensorInfo]]  # "A" and "B" of each linear of the file
    places: Mapping[Key, Key]  # linear of the wanted base → linear of the file
    descent: Descent | None

    @property
    def dtype(self) -> torch.dtype:
        """The widest that its tensors have."""
        infos = [info for sides in self.tensors.values() for info in sides.values()]
        return reduce(torch.promote_types, (DTYPES[info.dtype] for info in infos))

    def bag(self, key: Key) -> Bag:
        """The atoms of one linear of `places`, read now."""
        return fold(self.atoms(key), bool(self.config.get("use_rslora")))

    def atoms(self, key: Key) -> Atoms:
        """The same as the file has them, lifted where the adapter is of a slim base."""
        own = self.places[key]
        sides = {side: _tensor(self.weights, info) for side, info in self.tensors[own].items()}
        atoms = Atoms(sides["A"], sides["B"], alpha_of(self.config, own))
        if self.descent is None:
            return atoms
        return lift_linear(own, atoms, self.descent.dense, self.descent.plan)[1]


def open_source(
    name: str, directory: Path, geometry: Geometry, descent: Descent | None = None
) -> Source:
    """Check an adapter of the base with `geometry`, or of a slim base of it.

    Raises InvalidInput on `sources.NAME`, naming the tensor, for a file that does not fit its
    base or holds NaN or infinity.
    """
    field = f"sources.{name}"
    read_adapter(directory, descent.slim if descent else geometry, field=field)
    tensors: dict[Key, dict[str, TensorInfo]] = {}
    for tensor, info in read_header(directory / WEIGHTS, field).items():
        key, side = key_of(tensor, field)
        tensors.setdefault(key, {})[side] = info
    layers = descent.plan.kept_layers if descent else range(len(geometry.layers))
    return Source(
        name=name,
        config=read_config(directory / CONFIG, field),
        weights=directory / WEIGHTS,
        tensors=tensors,
        places={(layers[layer], linear): (layer, linear) for layer, linear in sorted(tensors)},
        descent=descent,
    )


def _tensor(path: Path, info: TensorInfo) -> Tensor:
    with path.open("rb") as stream:  # not mapped: what was read leaves memory with its tensor
        stream.seek(info.offset)
        content = bytearray(stream.read(info.bytes))
    return torch.frombuffer(content, dtype=DTYPES[info.dtype]).view(info.shape)
