"""A base held whole in memory, on which plans are tried without cutting anything.

What a plan removes is masked where it is read, at the inputs of o_proj and down_proj: the masked
base computes what the sliced one would.  Memory: the base in float32, and one batch.
"""

# Shape suffixes:  S = sequences,  T = tokens,  N = tokens of a batch,  H = hidden,  C = channels,
# V = vocabulary.

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pruning.evaluation import load
from pruning.plan import Plan
from pruning.stats import Statistics
from pruning.units import BLOCKS, KINDS, READERS, Kind, selections
from pruning.weights.checkpoint import Checkpoint

BATCH_TOKENS = 4096


class Trial:
    """Losses and distortions of plans on calibration sequences."""

    def __init__(self, checkpoint: Checkpoint, ids_ST: Tensor, statistics: Statistics):
        """`statistics` has the input moments of readers if plans compensate by biases."""
        self.ids_ST, self._geometry, self._statistics = ids_ST, checkpoint.geometry, statistics
        self._model = load(checkpoint.directory)
        self._device = self._model.device
        self._masks: dict[tuple[int, Kind], tuple[Tensor, Tensor]] = {}
        for layer, module in enumerate(self._model.model.layers):
            for kind in KINDS:
                reader = module.get_submodule(f"{BLOCKS[kind]}.{READERS[kind]}")
                reader.register_forward_pre_hook(partial(self._mask, (layer, kind)))
                block = module.get_submodule(BLOCKS[kind])
                block.register_forward_hook(partial(self._silence, (layer, kind)))

    def loss(self, plan: Plan, sequences: int) -> float:
        """Mean next-token loss over at most the first so many sequences, in nats."""
        self._apply(plan)
        nll, count = 0.0, 0
        for ids_ST in self._batches(sequences):
            targets_N = ids_ST[:, 1:].flatten()
            logits_STV = self._model(input_ids=ids_ST, use_cache=False).logits[:, :-1]
            nll += float(cross_entropy(logits_STV.flatten(0, 1), targets_N, reduction="sum"))
            count += len(targets_N)
        return nll / count

    def final_states(self, plan: Plan, sequences: int) -> list[Tensor]:
        """What the output head reads, batch by batch; (sequences, tokens, hidden) each."""
        self._apply(plan)
        return [
            self._model.model(input_ids=ids_ST, use_cache=False).last_hidden_state.cpu()
            for ids_ST in self._batches(sequences)
        ]

    def head_gram(self) -> Tensor:
        """EᵀE of the output head E: ‖Ed‖² = dᵀEᵀEd for a difference d of final states; (H, H)."""
        head_VH: Tensor = self._model.get_output_embeddings().weight.detach()
        return (head_VH.T @ head_VH).cpu()

    def _batches(self, sequences: int) -> Iterator[Tensor]:
        rows = max(1, BATCH_TOKENS // self.ids_ST.shape[1])
        with torch.inference_mode():
            for start in range(0, min(sequences, len(self.ids_ST)), rows):
                yield self.ids_ST[start : min(start + rows, sequences)].to(self._device)

    def _apply(self, plan: Plan) -> None:
        """For each block: which channels of its reader stay, and what stands for the others."""
        self._masks.clear()
        for layer, layer_plan in enumerate(plan.layers):
            chosen = selections(self._geometry, layer, layer_plan)
            for kind, linear in READERS.items():
                shape = self._geometry.linear_shape(layer, linear)
                assert shape is not None
                mask_C = torch.zeros(shape[1])
                if linear in chosen:
                    mask_C[list(chosen[linear].indices)] = 1
                if mask_C.all():
                    continue
                fill_C = torch.zeros(shape[1])
                if plan.bias_compensation:
                    fill_C = self._statistics.moments[layer, linear].mean_C.float()
                masks = mask_C.to(self._device), ((1 - mask_C) * fill_C).to(self._device)
                self._masks[layer, kind] = masks

    def _mask(
        self, key: tuple[int, Kind], module: nn.Module, inputs: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...] | None:
        if key not in self._masks:
            return None
        mask_C, fill_C = self._masks[key]
        return (inputs[0] * mask_C + fill_C, *inputs[1:])

    def _silence(self, key: tuple[int, Kind], module: nn.Module, inputs: Any, output: Any) -> Any:
        """A block without units is gone with its biases."""
        if key not in self._masks or self._masks[key][0].any():
            return None
        if isinstance(output, tuple):
            return (torch.zeros_like(output[0]), *output[1:])
        return torch.zeros_like(output)
