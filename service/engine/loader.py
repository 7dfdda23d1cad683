"""Strict loading of adapters: what does not fit the model exactly is refused, and leaves no trace.

vLLM's own loader copies a narrower tensor into a corner, accepts NaN, skips tensors of modules
that the model does not have, and keeps a half-loaded adapter registered after an error.
"""

import json
import re
from pathlib import Path

import torch
from safetensors import safe_open
from vllm.lora.lora_model import LoRAModel
from vllm.lora.lora_weights import LoRALayerWeights
from vllm.lora.request import LoRARequest
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.v1.worker import lora_model_runner_mixin

from pruning.geometry import Geometry
from service.engine.composites import MANIFEST, Composite, Parts, side_by_side

MODULE = re.compile(r"model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)")
SHOWN = 4  # problems listed in an error message


class StrictLoRAManager(LRUCacheWorkerLoRAManager):
    """vLLM's manager of a worker's adapters, with checks and a clean exit from errors."""

    def _load_adapter(self, lora_request: LoRARequest) -> LoRAModel:
        """Read an adapter into host memory.

        Raises ValueError when its tensors are not those of a plain LoRA for exactly this model.
        """
        path = Path(lora_request.lora_path)
        if path.suffix == MANIFEST:
            return self._load_composition(lora_request.lora_int_id, path)
        num_tensors = _count_tensors(Path(lora_request.lora_path))
        adapter = super()._load_adapter(lora_request)
        geometry = Geometry.from_config(self._adapter_manager.model.config.to_dict())
        problems = [p for name, w in adapter.loras.items() if (p := _problem(name, w, geometry))]
        if not problems and num_tensors != 2 * len(adapter.loras):
            problems = [f"{num_tensors} tensors do not pair up as A and B of its modules"]
        if problems:
            more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
            raise ValueError("; ".join(problems[:SHOWN]) + more)
        return adapter

    def _load_composition(self, id: int, manifest: Path) -> LoRAModel:
        if not hasattr(self, "_parts"):
            self._parts = Parts(lambda path: self._load_adapter(LoRARequest(path, id, path)))
        content = json.loads(manifest.read_text())
        parts, period = self._parts.of(content["parts"]), content.get("period")
        if getattr(self._adapter_manager, "takes_parts", False):
            return Composite(id, parts, period)
        if period is not None:
            raise ValueError("@switch is served by the kernels of a CPU engine, which do not run")
        return side_by_side(id, parts, self.lora_config.max_lora_rank)

    def add_adapter(self, lora_request: LoRARequest) -> bool:
        """Load and activate an adapter; after an error it is as if it had never been asked for."""
        known = lora_request.lora_int_id in self.list_adapters()
        try:
            return bool(super().add_adapter(lora_request))
        except Exception:
            if not known:
                self.remove_adapter(lora_request.lora_int_id)
            raise


def _count_tensors(adapter: Path) -> int:
    weights = adapter / "adapter_model.safetensors"
    if not weights.is_file():
        raise ValueError("there is no adapter_model.safetensors")
    with safe_open(weights, framework="pt") as file:
        return len(file.keys())


def _problem(name: str, weights: LoRALayerWeights, geometry: Geometry) -> str | None:
    match = MODULE.fullmatch(name)
    known = match and match[2] in geometry.architecture.linears
    if not match or not known or int(match[1]) >= len(geometry.layers):
        return f"{name}: the model has no such module"
    shape = geometry.linear_shape(int(match[1]), match[2])
    if shape is None:
        return f"{name}: the block was pruned away"
    if weights.lora_a is None or weights.lora_b is None:
        return f"{name}: lora_{'A' if weights.lora_a is None else 'B'} is missing"
    found = (tuple(weights.lora_a.shape), tuple(weights.lora_b.shape))
    expected = ((weights.rank, shape[1]), (shape[0], weights.rank))
    if found != expected:
        return f"{name}: A and B have shapes {found}, the model needs {expected}"
    if not (torch.isfinite(weights.lora_a).all() and torch.isfinite(weights.lora_b).all()):
        return f"{name}: not all values are finite"
    return None


def install() -> None:
    """Make vLLM's model runners build our manager; may be called again."""
    lora_model_runner_mixin.LRUCacheWorkerLoRAManager = StrictLoRAManager


def installed() -> bool:
    return lora_model_runner_mixin.LRUCacheWorkerLoRAManager is StrictLoRAManager
