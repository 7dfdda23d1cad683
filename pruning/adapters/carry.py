"""Carries an adapter through a cut: project keeps the kept units' rows and columns, lift undoes it.

The index form of LoRAM: Zhang et al., "Train Small, Infer Large: Memory-Efficient LoRA Training
for Large Language Models", ICLR 2025, https://arxiv.org/abs/2502.13533, which trains on the slim
base and lifts.  project(lift(adapter)) is the adapter itself, bit by bit.
"""

import shutil
from dataclasses import dataclass, replace
from functools import partial, reduce
from pathlib import Path

import torch
from torch import Tensor

from pruning.adapters.atoms import Adapter, Atoms, Key, read, write
from pruning.adapters.peft_format import EVALUATION, read_adapter
from pruning.errors import InvalidInput
from pruning.geometry import Geometry
from pruning.plan import Plan
from pruning.units import Selection, cuts


@dataclass(frozen=True)
class Cut:
    """From which shape to which: a dense base, the plan, and the slim base with its name."""

    dense: Geometry
    plan: Plan
    slim: Geometry
    name: str


def project(adapter: Adapter, dense: Geometry, plan: Plan) -> Adapter:
    """The adapter on the slim base: rows of b or columns of a by index, gone blocks left out."""
    projected: dict[Key, Atoms] = {}
    for new, old in enumerate(plan.kept_layers):
        for linear, kept in cuts(dense, old, plan).items():
            if atoms := adapter.atoms.get((old, linear)):
                projected[new, linear] = reduce(_select, kept, atoms)
    return Adapter(adapter.config, dict(sorted(projected.items())))


def lift(adapter: Adapter, dense: Geometry, plan: Plan) -> Adapter:
    """The adapter of a slim base on its dense one: scattered back, zeros where units had left."""
    lifted = (lift_linear(key, atoms, dense, plan) for key, atoms in adapter.atoms.items())
    return Adapter(adapter.config, dict(lifted))


def lift_linear(key: Key, atoms: Atoms, dense: Geometry, plan: Plan) -> tuple[Key, Atoms]:
    """What `lift` does to one linear: where it is on the dense base, and its atoms there."""
    new, linear = key
    old = plan.kept_layers[new]
    shape = dense.linear_shape(old, linear)
    assert shape is not None  # a dense base lacks no block
    scatter = partial(_scatter, shape=shape)
    return (old, linear), reduce(scatter, cuts(dense, old, plan)[linear], atoms)


def carry(source: Path, destination: Path, cut: Cut, field: str) -> None:
    """Project a PEFT directory from a dense base to its slim one, eval.jsonl with it.

    Raises InvalidInput when the adapter does not fit the dense base, or nothing of it remains.
    """
    projected = project(load(source, cut, field), cut.dense, cut.plan)
    save(projected, source, destination, cut, field)


def load(source: Path, cut: Cut, field: str) -> Adapter:
    """Read a PEFT directory.  Raises InvalidInput when it does not fit the dense base."""
    read_adapter(source, cut.dense, field=field)
    return read(source, field)


def save(carried: Adapter, source: Path, destination: Path, cut: Cut, field: str) -> None:
    """Write what became of the adapter in `source`, its eval.jsonl with it.

    Raises InvalidInput when nothing of it remains.
    """
    if not carried.atoms:
        raise InvalidInput(field, "all of its modules are in blocks that the plan removes")
    write(carried, destination, cut.slim, cut.name)
    if (source / EVALUATION).is_file():
        shutil.copyfile(source / EVALUATION, destination / EVALUATION)


def _select(atoms: Atoms, selection: Selection) -> Atoms:
    index = torch.tensor(selection.indices)
    if selection.axis == 0:
        return replace(atoms, b=atoms.b.index_select(0, index))
    return replace(atoms, a=atoms.a.index_select(1, index))


def _scatter(atoms: Atoms, selection: Selection, shape: tuple[int, int]) -> Atoms:
    index = torch.tensor(selection.indices)
    if selection.axis == 0:
        return replace(atoms, b=_spread(atoms.b, 0, index, shape[0]))
    return replace(atoms, a=_spread(atoms.a, 1, index, shape[1]))


def _spread(kept: Tensor, axis: int, index: Tensor, size: int) -> Tensor:
    shape = list(kept.shape)
    shape[axis] = size
    return kept.new_zeros(shape).index_copy(axis, index, kept)
