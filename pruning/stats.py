"""One streamed calibration pass: statistics that are small, mergeable and saved as safetensors."""

# Shape suffixes:  N = tokens,  C = channels of a linear's input or of its unit axis.

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pruning.checkpoint import Checkpoint
from pruning.geometry import Geometry
from pruning.methods import Statistic
from pruning.progress import Progress, part
from pruning.streaming import Stream
from pruning.units import BLOCKS, KINDS, READERS, members

Key = tuple[int, str]  # layer, linear


@dataclass(frozen=True)
class Moments:
    """Count, mean and summed squared deviations of each channel, in float64.

    Merged pairwise after Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for
    Computing Sample Variances", COMPSTAT 1982, which is Welford's update for batches.
    """

    count: int
    mean_C: Tensor
    squares_C: Tensor

    @classmethod
    def of(cls, samples_NC: Tensor) -> "Moments":
        samples_NC = samples_NC.double()
        mean_C = samples_NC.mean(dim=0)
        squares_C = (samples_NC - mean_C).square().sum(dim=0)
        return cls(len(samples_NC), mean_C.cpu(), squares_C.cpu())

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets of samples together."""
        count = self.count + other.count
        step_C = other.mean_C - self.mean_C
        weight = self.count * other.count / count
        return Moments(
            count,
            self.mean_C + step_C * (other.count / count),
            self.squares_C + other.squares_C + step_C.square() * weight,
        )

    @property
    def variance_C(self) -> Tensor:
        """Unbiased, as FLAP has it."""
        return self.squares_C / (self.count - 1)


@dataclass(frozen=True)
class Saliency:
    """Weight times gradient of a linear, summed over all but its unit axis, in float64."""

    element_C: Tensor  # the absolute value taken before the sum
    vector_C: Tensor  # the signed sum


@dataclass(frozen=True)
class Statistics:
    """What a calibration pass leaves behind; empty where nothing was asked for."""

    moments: Mapping[Key, Moments] = field(default_factory=dict)  # of the inputs of readers
    saliency: Mapping[Key, Saliency] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        tensors: dict[str, Tensor] = {}
        for (layer, linear), m in self.moments.items():
            name = f"{layer}.{linear}.moments"
            tensors[f"{name}.count"] = torch.tensor(m.count)
            tensors[f"{name}.mean"], tensors[f"{name}.squares"] = m.mean_C, m.squares_C
        for (layer, linear), s in self.saliency.items():
            name = f"{layer}.{linear}.saliency"
            tensors[f"{name}.element"], tensors[f"{name}.vector"] = s.element_C, s.vector_C
        save_file(tensors, path)

    @classmethod
    def load(cls, path: Path) -> "Statistics":
        grouped: dict[str, dict[Key, dict[str, Tensor]]] = {"moments": {}, "saliency": {}}
        for name, tensor in load_file(path).items():
            layer, linear, statistic, part_name = name.split(".")
            grouped[statistic].setdefault((int(layer), linear), {})[part_name] = tensor
        return cls(
            {
                k: Moments(int(t["count"]), t["mean"], t["squares"])
                for k, t in grouped["moments"].items()
            },
            {k: Saliency(t["element"], t["vector"]) for k, t in grouped["saliency"].items()},
        )


def collect(
    checkpoint: Checkpoint,
    ids_ST: Tensor,
    needs: Collection[Statistic],
    work: Path,
    progress: Progress,
) -> Statistics:
    """Run the calibration sequences through the base once and keep what `needs` names.

    Needs room in `work` for the hidden states of all sequences: two layers' worth, or every
    layer's when gradients are needed.  Nothing is run when nothing is needed.
    """
    if not needs:
        return Statistics()
    with TemporaryDirectory(dir=work) as states:
        stream = Stream(checkpoint, ids_ST, Path(states))
        return _run(stream, needs, progress)


def _run(stream: Stream, needs: Collection[Statistic], progress: Progress) -> Statistics:
    backward = "saliency" in needs
    moments: dict[Key, Moments] = {}
    saliency: dict[Key, Saliency] = {}
    watch = _Watch(moments) if "input_moments" in needs else None
    stream.forward(
        watch or _ignore,
        keep_inputs=backward,
        progress=part(progress, 0, 0.25 if backward else 1),
    )
    if watch:
        watch.stop()
    if backward:
        visit = partial(_add_saliency, saliency, stream.checkpoint.geometry)
        stream.backward(visit, part(progress, 0.25, 1))
    return Statistics(moments, saliency)


def _ignore(index: int, layer: nn.Module) -> None:
    """Nothing of a layer is watched."""


class _Watch:
    """Adds the inputs of each layer's readers to their moments while tokens pass."""

    def __init__(self, moments: dict[Key, Moments]):
        self.moments = moments
        self.hooks: list[Any] = []

    def __call__(self, index: int, layer: nn.Module) -> None:
        self.stop()
        for kind in KINDS:
            linear = READERS[kind]
            module = layer.get_submodule(f"{BLOCKS[kind]}.{linear}")
            hook = partial(self._add, (index, linear))
            self.hooks.append(module.register_forward_pre_hook(hook))

    def stop(self) -> None:
        while self.hooks:
            self.hooks.pop().remove()

    def _add(self, key: Key, module: nn.Module, inputs: tuple[Tensor]) -> None:
        new = Moments.of(inputs[0].flatten(0, -2))
        self.moments[key] = self.moments[key].merge(new) if key in self.moments else new


def _add_saliency(
    saliency: dict[Key, Saliency], geometry: Geometry, index: int, layer: nn.Module
) -> None:
    for kind in KINDS:
        for member in members(geometry, index, kind):
            weight = layer.get_parameter(f"{BLOCKS[kind]}.{member.linear}.weight")
            assert weight.grad is not None
            product = weight.detach() * weight.grad
            other = 1 - member.axis
            vector_C = product.sum(dim=other, dtype=torch.float64)
            element_C = product.abs_().sum(dim=other, dtype=torch.float64)
            saliency[index, member.linear] = Saliency(element_C.cpu(), vector_C.cpu())
