"""A dense base run layer by layer: memory holds one decoder layer, whatever the depth.

Hidden states between layers lie in memory-mapped files below a work directory.
"""

# Shape suffixes:  S = sequences,  T = tokens,  H = hidden,  N = tokens of a chunk,  V = vocabulary.

import ctypes
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pruning.progress import Progress
from pruning.weights.checkpoint import Checkpoint
from pruning.weights.tensors import FINAL_NORM

BATCH_TOKENS = 4096  # run through a layer at a time
HEAD_TOKENS = 512  # logits are the widest thing there is

Visit = Callable[[int, nn.Module], None]  # index of the layer, the layer
Objective = Callable[[Tensor, Tensor], Tensor]  # logits (N, V), next tokens (N,) → summed


def next_token_loss(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Negative log likelihood, summed over tokens, in nats."""
    return cross_entropy(logits_NV, targets_N, reduction="sum")


def unwatched(index: int, layer: nn.Module) -> None:
    """Nothing of a layer is looked at."""


class Stream:
    """Calibration sequences on their way through a base."""

    def __init__(self, checkpoint: Checkpoint, ids_ST: Tensor, work: Path):
        self.checkpoint, self.ids_ST, self.work = checkpoint, ids_ST, work
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.num_layers = len(checkpoint.geometry.layers)
        self._body, self.norm = one_layer_body(checkpoint, self.device)
        self.layer: nn.Module = self._body.layers[0]
        self._kinds = layer_kinds(checkpoint)
        entry = checkpoint.geometry.architecture.logit_cap
        self._cap: float | None = getattr(self._body.config, entry) if entry else None

    def forward(self, prepare: Visit, *, keep_inputs: bool, progress: Progress) -> None:
        """Run all layers in order; `prepare` sees each layer before any token passes it.

        With `keep_inputs` every layer's inputs stay on disk for `backward`.
        """
        self._embed()
        for i in range(self.num_layers):
            self._fill(i)
            prepare(i, self.layer)
            for rows in self._batches(i, self.num_layers, "forward", progress, self._rows):
                with torch.no_grad():
                    self._states(i + 1)[rows] = self._run(self._states(i)[rows]).cpu()
            if not keep_inputs:
                self._path(i).unlink()

    def backward(
        self,
        visit: Visit,
        progress: Progress,
        *,
        prepare: Visit = unwatched,
        each: Visit = unwatched,
        one_by_one: bool = False,
        objective: Objective = next_token_loss,
    ) -> None:
        """Walk back from the last layer to the first, after `forward(keep_inputs=True)`.

        `prepare` sees each layer before any gradient passes it, `each` after every batch (a single
        sequence with `one_by_one`), and `visit` at last with the gradients of its weights: those of
        the mean of `objective` over all next tokens of all sequences.  May be walked again.
        """
        self._head_gradient(objective)
        for step, i in enumerate(reversed(range(self.num_layers))):
            self._fill(i)
            prepare(i, self.layer)
            size = 1 if one_by_one else self._rows
            for rows in self._batches(step, self.num_layers, "backward", progress, size):
                batch_STH = self._states(i)[rows].to(self.device, copy=True).requires_grad_()
                outputs_STH = self._run(batch_STH)
                torch.autograd.backward(outputs_STH, self._states(-1)[rows].to(self.device))
                assert batch_STH.grad is not None
                self._states(-1)[rows] = batch_STH.grad.cpu()
                each(i, self.layer)
            visit(i, self.layer)

    def loss_from(
        self, index: int, alter: Callable[[nn.Module], None], num_sequences: int
    ) -> float:
        """Mean next-token loss of the first sequences with layer `index` altered, in nats.

        After `forward(keep_inputs=True)`; layers before `index` are not run again.
        """
        states_STH = self._states(index)[:num_sequences]
        total, count = 0.0, 0
        with torch.no_grad():
            for i in range(index, self.num_layers):
                self._fill(i)
                if i == index:
                    alter(self.layer)
                batches = slices(len(states_STH), self._rows)
                states_STH = torch.cat([self._run(states_STH[rows]).cpu() for rows in batches])
            head_VH = self.checkpoint.head().to(self.device, torch.float32)
            for row, ids_T in enumerate(self.ids_ST[:num_sequences]):
                for chunk in slices(len(ids_T) - 1, HEAD_TOKENS):
                    last_NH = states_STH[row, chunk].to(self.device)
                    logits_NV = self._logits(last_NH, head_VH)
                    targets_N = ids_T[1:][chunk].to(self.device)
                    total += next_token_loss(logits_NV, targets_N).item()
                    count += len(targets_N)
        return total / count

    def _embed(self) -> None:
        for rows in slices(len(self.ids_ST), self._rows):
            self._states(0)[rows] = self.checkpoint.embedded(self.ids_ST[rows])

    def _logits(self, last_NH: Tensor, head_VH: Tensor) -> Tensor:
        logits_NV: Tensor = self.norm(last_NH) @ head_VH.T
        return logits_NV if self._cap is None else (logits_NV / self._cap).tanh() * self._cap

    def _head_gradient(self, objective: Objective) -> None:
        """∂(mean objective)/∂(outputs of the last layer), in a file of its own; (S, T, H)."""
        head_VH = self.checkpoint.head().to(self.device, torch.float32)
        num_targets = self.ids_ST[:, 1:].numel()
        for row, ids_T in enumerate(self.ids_ST):
            states_TH, gradient_TH = self._states(self.num_layers)[row], self._states(-1)[row]
            for chunk in slices(len(ids_T) - 1, HEAD_TOKENS):
                last_NH = states_TH[chunk].to(self.device, copy=True).requires_grad_()
                targets_N = ids_T[1:][chunk].to(self.device)
                logits_NV = self._logits(last_NH, head_VH)
                torch.autograd.backward(objective(logits_NV, targets_N) / num_targets)
                assert last_NH.grad is not None
                gradient_TH[chunk] = last_NH.grad.cpu()
            gradient_TH[-1] = 0

    def _fill(self, index: int) -> None:
        """Put a layer's weights in the place of the last one's, and its gradients to zero."""
        self.layer.load_state_dict(self.checkpoint.layer(index))
        become(self._body, self._kinds[index])
        self.layer.zero_grad(set_to_none=False)
        return_freed_memory()

    def _run(self, states_STH: Tensor) -> Tensor:
        states_STH = states_STH.to(self.device)
        outputs: Tensor = self._body(inputs_embeds=states_STH, use_cache=False).last_hidden_state
        return outputs

    def _path(self, boundary: int) -> Path:
        return self.work / ("gradient.f32" if boundary < 0 else f"states-{boundary}.f32")

    def _states(self, boundary: int) -> Tensor:
        """The states before a layer (after the last for num_layers), or the gradient for -1.

        Mapped anew for every batch: what was touched of a mapping counts as resident memory.
        """
        shape = (*self.ids_ST.shape, self.checkpoint.geometry.hidden_size)
        return mapped(self._path(boundary), shape)

    @property
    def _rows(self) -> int:
        return max(1, BATCH_TOKENS // self.ids_ST.shape[1])

    def _batches(
        self, step: int, steps: int, what: str, progress: Progress, size: int
    ) -> Iterator[slice]:
        num_rows = len(self.ids_ST)
        for rows in slices(num_rows, size):
            progress((step + rows.start / num_rows) / steps, f"{what}, layer {step + 1} of {steps}")
            yield rows


def mapped(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The float32 tensor in a file, made if need be; what is written to it is in the file."""
    size = math.prod(shape)
    tensor = torch.from_file(str(path), shared=True, size=size, dtype=torch.float32)
    return tensor.view(shape)


def return_freed_memory() -> None:
    """Without this the C library keeps what a layer freed, a few MB more with every layer."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def slices(length: int, size: int) -> list[slice]:
    """Slices of at most `size` that cover `length`."""
    bounds = [*range(0, length, size), length]
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]


def one_layer_body(checkpoint: Checkpoint, device: torch.device) -> tuple[Any, nn.Module]:
    """The family's stock model with one empty layer, and its final norm, filled, apart.

    Through the stock model's own forward come positions, masks and sliding windows as it makes
    them; its embedding stays on the meta device and is never called.
    """
    from transformers import AutoConfig, AutoModel  # seconds that scoring and cutting do without

    config = AutoConfig.from_pretrained(checkpoint.directory)
    config.num_hidden_layers = 1
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1]
    attention = checkpoint.geometry.architecture.attn_implementation
    with torch.device("meta"):
        body = AutoModel.from_config(config, attn_implementation=attention, dtype=torch.float32)
    body.eval().layers.to_empty(device=device)
    body.rotary_emb = type(body.rotary_emb)(config=config).to(device)
    norm, body.norm = body.norm, nn.Identity()
    weight = checkpoint.tensor(FINAL_NORM).to(device, torch.float32)
    norm.load_state_dict({"weight": weight}, assign=True)
    return body, norm


def layer_kinds(checkpoint: Checkpoint) -> list[str]:
    """The kind of attention of every layer, as transformers calls them; one kind if untold."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint.directory)
    told = getattr(config, "layer_types", None)
    return list(told or [""] * len(checkpoint.geometry.layers))


def become(body: Any, kind: str) -> None:
    """Let the one layer of a body attend as layers of this kind do: masks go by the config."""
    if kind:
        body.config.layer_types = [kind]
