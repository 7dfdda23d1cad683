"""A base held whole in memory, on which plans are tried without cutting anything.

What a plan removes is masked where it is read, at the inputs of o_proj and down_proj: the masked
base computes what the sliced one would.  Memory: the base in float32, one batch, and some refits of
its readers where plans are tried as the closed form would repair them.
"""

# Shape suffixes:  S = sequences,  T = tokens,  N = tokens of a batch,  H = hidden,  C = channels,
# V = vocabulary.

from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from pruning.evaluation import load
from pruning.plan import Plan
from pruning.statistics.grams import refit
from pruning.stats import Statistics
from pruning.units import BLOCKS, KINDS, READERS, Kind, selections
from pruning.weights.checkpoint import Checkpoint

BATCH_TOKENS = 4096
_REFITS = 8  # of a reader that are remembered


class Trial:
    """Losses and distortions of plans on calibration sequences."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        ids_ST: Tensor,
        statistics: Statistics,
        refit_damping: float | None = None,
    ):
        """`statistics` has the input moments of readers if plans compensate by biases.

        With a damping the readers are refit to each plan, on the Grams of the dense base that
        `statistics` then has; a bias takes no part in that.
        """
        self.ids_ST, self._geometry, self._statistics = ids_ST, checkpoint.geometry, statistics
        self._model = load(checkpoint.directory)
        self._device = self._model.device
        self._masks: dict[tuple[int, Kind], tuple[Tensor, Tensor]] = {}
        self._refit_damping = refit_damping
        self._dense_states: Tensor | None = None
        self._dense = {key: self._reader(*key).weight.detach() for key in self._blocks()}
        self._refit = lru_cache(_REFITS * len(self._dense))(self._refit_anew)
        for layer, kind in self._blocks():
            reader = self._reader(layer, kind)
            reader.register_forward_pre_hook(partial(self._mask, (layer, kind)))
            block = self._model.model.layers[layer].get_submodule(BLOCKS[kind])
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

    def divergence(self, plan: Plan, sequences: int) -> float:
        """Mean divergence KL(dense ‖ plan) of next tokens over the first sequences, in nats."""
        if self._dense_states is None:
            states = self.final_states(Plan.dense(self._geometry), len(self.ids_ST))
            self._dense_states = torch.cat(states)
        self._apply(plan)
        total, start = 0.0, 0
        for ids_ST in self._batches(sequences):
            states_STH = self._dense_states[start : start + len(ids_ST)].to(self._device)
            goal_STV = self._model.lm_head(states_STH).log_softmax(dim=-1)
            found_STV = self._model(input_ids=ids_ST, use_cache=False).logits.log_softmax(dim=-1)
            total += float(kl_div(found_STV, goal_STV, reduction="sum", log_target=True))
            start += len(ids_ST)
        return total / self.ids_ST[:start].numel()

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

    def _blocks(self) -> Iterator[tuple[int, Kind]]:
        return product(range(len(self._geometry.layers)), KINDS)

    def _reader(self, layer: int, kind: Kind) -> Any:
        return self._model.model.layers[layer].get_submodule(f"{BLOCKS[kind]}.{READERS[kind]}")

    def _apply(self, plan: Plan) -> None:
        """For each block: which channels of its reader stay, and what stands for the others."""
        self._masks.clear()
        for layer, kind in self._blocks():
            linear = READERS[kind]
            chosen = selections(self._geometry, layer, plan.layers[layer]).get(linear)
            kept = chosen.indices if chosen else ()
            mask_C = torch.zeros(self._dense[layer, kind].shape[1])
            mask_C[list(kept)] = 1
            self._reader(layer, kind).weight.data = self._dense[layer, kind]
            if mask_C.all():
                continue
            if kept and self._refit_damping is not None:
                self._reader(layer, kind).weight.data = self._refit(layer, kind, kept)
            fill_C = torch.zeros_like(mask_C)
            if plan.bias_compensation:
                fill_C = self._statistics.moments[layer, linear].mean_C.float()
            masks = mask_C.to(self._device), ((1 - mask_C) * fill_C).to(self._device)
            self._masks[layer, kind] = masks

    def _refit_anew(self, layer: int, kind: Kind, kept: tuple[int, ...]) -> Tensor:
        """The weights of a reader when these channels stay; those of the others are zero."""
        assert self._refit_damping is not None
        dense_HC = self._dense[layer, kind]
        gram_CC = self._statistics.grams[layer, READERS[kind]].to(self._device)
        kept_K = torch.tensor(kept, device=self._device)
        weight_HC = torch.zeros_like(dense_HC)
        weight_HC[:, kept_K] = refit(dense_HC, gram_CC, kept_K, self._refit_damping).to(dense_HC)
        return weight_HC

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
