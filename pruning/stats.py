"""One streamed calibration pass: statistics that are small, mergeable and saved as safetensors."""

# Shape suffixes:  N = tokens,  C = channels of a linear's input or of its unit axis.

import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pruning.architectures.layout import Block
from pruning.errors import InvalidInput
from pruning.methods.entry import Statistic
from pruning.progress import Progress, part
from pruning.statistics.absolute import AbsoluteMeans
from pruning.statistics.gradients import Saliency as Saliency
from pruning.statistics.gradients import SequenceGradients
from pruning.statistics.grams import StoredGrams, SummedGrams
from pruning.statistics.guided import guided_grams
from pruning.statistics.influence import WHOLE, Influence
from pruning.statistics.lora import LoraSaliency
from pruning.statistics.released import ReleasedFluctuation
from pruning.statistics.relevance import Relevance
from pruning.statistics.streaming import Stream
from pruning.statistics.walk import Passage, counted, dense_grams
from pruning.statistics.walks import WALKS
from pruning.statistics.zeroth import ZerothOrder
from pruning.weights.checkpoint import Checkpoint

GRAMS, GUIDED = ".grams", ".guided"  # suffixes of directories of Grams beside the statistics
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

    @classmethod
    def updated(cls, before: "Moments | None", inputs_STC: Tensor) -> "Moments":
        """After some more sequences."""
        new = cls.of(inputs_STC.flatten(0, -2))
        return before.merge(new) if before else new

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

    @property
    def mean_square_C(self) -> Tensor:
        """The mean of x², not of its deviation."""
        return self.squares_C / self.count + self.mean_C.square()


@dataclass(frozen=True)
class Statistics:
    """What a calibration pass leaves behind; empty where nothing was asked for."""

    moments: Mapping[Key, Moments] = field(default_factory=dict)  # of the inputs of linears
    saliency: Mapping[Key, Saliency] = field(default_factory=dict)
    entropy_saliency: Mapping[Key, Saliency] = field(default_factory=dict)
    sequence_gradients: Mapping[Key, SequenceGradients] = field(default_factory=dict)
    lora_saliency: Mapping[Key, LoraSaliency] = field(default_factory=dict)
    zeroth_order: Mapping[Key, ZerothOrder] = field(default_factory=dict)
    # of the inputs of readers
    absolute_means: Mapping[Key, AbsoluteMeans] = field(default_factory=dict)
    released_fluctuation: Mapping[Key, ReleasedFluctuation] = field(default_factory=dict)
    relevance: Mapping[Key, Relevance] = field(default_factory=dict)
    influence: Mapping[Key, Influence] = field(default_factory=dict)  # of whole layers
    # read when asked for
    grams: Mapping[Key, Tensor] = field(default_factory=dict)
    guided_grams: Mapping[Key, Tensor] = field(default_factory=dict)

    def merge(self, other: "Statistics") -> "Statistics":
        """Those of both sets of sequences together, as if one pass had seen them all.

        Raises InvalidInput on `sites` where the two differ in what they hold, or hold what is no
        sum over tokens or sequences, such as gradients of a whole set.
        """
        merged: dict[str, Any] = {}
        for statistic in fields(self):
            name, mine, theirs = (
                statistic.name,
                *(getattr(s, statistic.name) for s in (self, other)),
            )
            if set(mine) != set(theirs):
                raise InvalidInput(
                    "sites", f"{name} were collected of different layers; use one base"
                )
            if mine and name not in (*_SUMS, "grams"):
                raise InvalidInput(
                    "sites", f"{name} are no sums and cannot be merged; sums are {', '.join(_SUMS)}"
                )
            if name != "grams":
                merged[name] = {key: record.merge(theirs[key]) for key, record in mine.items()}
        return Statistics(**merged, grams=SummedGrams(self.grams, other.grams))

    def save(self, path: Path) -> None:
        tensors: dict[str, Tensor] = {}
        for statistic in fields(self):
            if statistic.name in ("grams", "guided_grams"):  # are files already
                continue
            for (layer, linear), record in getattr(self, statistic.name).items():
                for name, value in vars(record).items():
                    key = f"{layer}.{linear}.{statistic.name}.{name}"
                    tensors[key] = torch.as_tensor(value)
        save_file(tensors, path)

    @classmethod
    def load(cls, path: Path) -> "Statistics":
        parts: dict[str, dict[Key, dict[str, Any]]] = {}
        for name, tensor in load_file(path).items():
            layer, linear, statistic, part_name = name.split(".")
            value = tensor if tensor.is_floating_point() else int(tensor)
            records = parts.setdefault(statistic, {})
            records.setdefault((int(layer), linear), {})[part_name] = value
        return cls(
            grams=StoredGrams(path.with_suffix(GRAMS)),
            guided_grams=StoredGrams(path.with_suffix(GUIDED)),
            **{
                statistic: {key: _RECORDS[statistic](**values) for key, values in records.items()}
                for statistic, records in parts.items()
            },
        )


_SUMS = ("moments", "absolute_means", "relevance", "influence")  # and Grams
_RECORDS: Mapping[str, Callable[..., Any]] = {
    "moments": Moments,
    "saliency": Saliency,
    "entropy_saliency": Saliency,
    "sequence_gradients": SequenceGradients,
    "lora_saliency": LoraSaliency,
    "zeroth_order": ZerothOrder,
    "absolute_means": AbsoluteMeans,
    "released_fluctuation": ReleasedFluctuation,
    "relevance": Relevance,
    "influence": Influence,
}


def collect_into(
    path: Path,
    checkpoint: Checkpoint,
    ids_ST: Tensor,
    needs: Collection[Statistic],
    sink_tokens: int,
    state: Path,
    progress: Progress,
) -> None:
    """Collect what `needs` names for `Statistics.load(path)`; Grams get a directory beside it.

    `state` survives a kill, which costs the walk over one layer for the Grams of inputs, and for
    all else the walk over all layers.
    """
    state.mkdir(parents=True, exist_ok=True)
    grams = {"input_grams", "guided_grams"}.intersection(needs)
    share = part(progress, 0, 0.4) if grams else progress
    collected, draft = state / path.name, state / "draft"
    if not collected.exists():
        collect(checkpoint, ids_ST, set(needs) - grams, state, share).save(draft)
        draft.rename(collected)
    os.link(collected, path)
    if "input_grams" in needs:
        tokens_ST = counted(ids_ST, sink_tokens)
        passage = Passage(checkpoint, ids_ST, tokens_ST, state / "states")
        dense_grams(passage, checkpoint, state / "grams", part(progress, 0.4, 0.6))
        shutil.copytree(state / "grams", path.with_suffix(GRAMS), copy_function=os.link)
    if "guided_grams" in needs:
        _guided(checkpoint, ids_ST, state, part(progress, 0.6, 1))
        shutil.copytree(state / "guided", path.with_suffix(GUIDED), copy_function=os.link)


def _guided(checkpoint: Checkpoint, ids_ST: Tensor, state: Path, progress: Progress) -> None:
    finished, draft = state / "guided", state / "guided.draft"
    if finished.exists():
        return
    shutil.rmtree(draft, ignore_errors=True)
    with TemporaryDirectory(dir=state) as states:
        guided_grams(Stream(checkpoint, ids_ST, Path(states)), draft, progress)
    draft.rename(finished)


def collect(
    checkpoint: Checkpoint,
    ids_ST: Tensor,
    needs: Collection[Statistic],
    work: Path,
    progress: Progress,
) -> Statistics:
    """Run the calibration sequences through the base once and keep what `needs` names.

    Needs room in `work` for the hidden states of all sequences: two layers' worth, or every
    layer's when more than activations is needed.  Nothing is run when nothing is needed.
    """
    if not needs:
        return Statistics()
    with TemporaryDirectory(dir=work) as states:
        stream = Stream(checkpoint, ids_ST, Path(states))
        walks = {name: walk for name, walk in WALKS.items() if name in needs}
        start = 0.25 if walks else 1.0
        found: dict[str, Any] = _watched(stream, needs, bool(walks), part(progress, 0, start))
        for number, (name, walk) in enumerate(walks.items()):
            here, there = (start + (1 - start) * n / len(walks) for n in (number, number + 1))
            found[name] = walk(stream, part(progress, here, there))
        return Statistics(**found)


def _watched(
    stream: Stream, needs: Collection[Statistic], keep_inputs: bool, progress: Progress
) -> dict[str, Any]:
    """What the forward walk shows of the inputs of linears, and of whole layers."""
    found: dict[str, Any] = {}
    watches = [watch for watch in _WATCHES if watch.statistic in needs]
    hooks: list[Any] = []

    def prepare(index: int, layer: nn.Module) -> None:
        while hooks:
            hooks.pop().remove()
        for watch in watches:
            records = found.setdefault(watch.field, {})
            for block in stream.checkpoint.geometry.architecture.blocks:
                linear = watch.linear(block)
                module = layer.get_submodule(f"{block.name}.{linear}")
                hook = partial(_update, records, (index, linear), watch.updated)
                hooks.append(module.register_forward_pre_hook(hook))
        if "influence" in needs:
            turned = partial(_turn, found.setdefault("influence", {}), (index, WHOLE))
            hooks.append(layer.register_forward_hook(turned))

    stream.forward(prepare, keep_inputs=keep_inputs, progress=progress)
    while hooks:
        hooks.pop().remove()
    return found


@dataclass(frozen=True)
class _Watch:
    """A statistic of the inputs of some linears: a record, and how more inputs change it."""

    statistic: Statistic
    field: str
    updated: Callable[[Any, Tensor], Any]
    linear: Callable[[Block], str] = attrgetter("reader")


_WATCHES = (
    _Watch("input_moments", "moments", Moments.updated),
    _Watch("hidden_moments", "moments", Moments.updated, attrgetter("entrance")),
    _Watch("absolute_means", "absolute_means", AbsoluteMeans.updated),
    _Watch("released_fluctuation", "released_fluctuation", ReleasedFluctuation.updated),
)


def _update(
    records: dict[Key, Any],
    key: Key,
    updated: Callable[[Any, Tensor], Any],
    module: nn.Module,
    inputs: tuple[Tensor],
) -> None:
    records[key] = updated(records.get(key), inputs[0])


def _turn(
    records: dict[Key, Any], key: Key, layer: nn.Module, inputs: tuple[Tensor], output: Tensor
) -> None:
    records[key] = Influence.updated(records.get(key), inputs[0], output)
