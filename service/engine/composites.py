"""Compositions inside an engine: sums of adapters that are in memory once, whoever uses them.

A composition reaches vLLM as an adapter whose path is a manifest, {"parts": [{"content", "path",
"weight"}]}, where content is a digest.  Where our kernels run, it stays a list of parts; else their
atoms are put side by side.  With a "period" the parts take turns along the positions.
"""

# Shape suffixes: R = rank, I = inputs and O = outputs of a linear.

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch
from vllm.lora.lora_model import LoRAModel
from vllm.lora.lora_weights import LoRALayerWeights

MANIFEST = ".json"  # suffix that tells a manifest from an adapter's directory


@dataclass(frozen=True)
class Part:
    """An adapter in a sum; `content` is its digest."""

    content: str
    model: LoRAModel  # alpha / r is folded into B
    weight: float


class Composite(LoRAModel):
    """An adapter without weights of its own: `parts` are summed as they are used.

    With a `period` each is used alone, at that many positions before the next one.
    """

    def __init__(self, lora_model_id: int, parts: Sequence[Part], period: int | None) -> None:
        super().__init__(lora_model_id, sum(part.model.rank for part in parts), loras={})
        self.parts = tuple(parts)
        self.period = period


class Parts:
    """The adapters that compositions are made of, by content, as long as any needs them."""

    def __init__(self, load: Callable[[str], LoRAModel]) -> None:
        self._load = load
        self._loaded: WeakValueDictionary[str, LoRAModel] = WeakValueDictionary()

    def of(self, items: Sequence[Mapping[str, Any]]) -> list[Part]:
        """The parts of a manifest.  Raises what `load` raises."""
        return [
            Part(item["content"], self._model(item["content"], item["path"]), item["weight"])
            for item in items
        ]

    def _model(self, content: str, path: str) -> LoRAModel:
        part = self._loaded.get(content)
        if part is None:
            part = self._loaded[content] = self._load(path)
            for weights in part.loras.values():
                weights.optimize()
        return part


def side_by_side(lora_model_id: int, parts: Sequence[Part], max_rank: int) -> LoRAModel:
    """One plain adapter with the atoms of all parts: the weighted sum, exactly.

    Raises ValueError when a linear gets more atoms than the engine takes.
    """
    names = sorted({name for part in parts for name in part.model.loras})
    loras = {
        name: _concatenated(name, [p for p in parts if name in p.model.loras]) for name in names
    }
    rank = max(weights.rank for weights in loras.values())
    if rank > max_rank:
        raise ValueError(f"the adapters have {rank} atoms together, the engine takes {max_rank}")
    return LoRAModel(lora_model_id, rank, loras)


def _concatenated(name: str, parts: Sequence[Part]) -> LoRALayerWeights:
    weights = [part.model.loras[name] for part in parts]
    a_RI = torch.cat([w.lora_a for w in weights])
    b_OR = torch.cat(
        [w.lora_b * part.weight for w, part in zip(weights, parts, strict=True)], dim=1
    )
    return LoRALayerWeights(weights[0].module_name, len(a_RI), len(a_RI), a_RI, b_OR)


def matrices(
    part: LoRAModel, packed: Mapping[str, Sequence[str]], module: str
) -> list[tuple[torch.Tensor, torch.Tensor] | None]:
    """A and B of each slice of a module, None where the part has none."""
    found = (part.loras.get(name) for name in packed.get(module, (module,)))
    return [None if weights is None else (weights.lora_a, weights.lora_b) for weights in found]
