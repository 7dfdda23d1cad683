"""What a calibration pass leaves behind: small, mergeable, and saved as safetensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pruning.errors import InvalidInput
from pruning.statistics.absolute import AbsoluteMeans
from pruning.statistics.gradients import Saliency, SequenceGradients
from pruning.statistics.grams import StoredGrams, SummedGrams
from pruning.statistics.influence import Influence
from pruning.statistics.lora import LoraSaliency
from pruning.statistics.moments import Moments
from pruning.statistics.released import ReleasedFluctuation
from pruning.statistics.relevance import Relevance
from pruning.statistics.zeroth import ZerothOrder

GRAMS, GUIDED = ".grams", ".guided"  # suffixes of directories of Grams beside the statistics
Key = tuple[int, str]  # layer, linear


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
