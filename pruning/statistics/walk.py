"""A base walked block by block while its readers are replaced: each sees what came before it.

Layer l reads hidden states that went through the new readers of all layers before, and the MLP
those of its own layer's new attention.  Memory holds one layer; hidden states lie on disk.
"""

# Shape suffixes:  S = sequences,  T = tokens,  H = hidden,  C = inputs of a reader,
# K = inputs that stay,  B = sequences of a batch,  N = tokens that count.

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruning.architectures.layout import Architecture, Block
from pruning.progress import Progress
from pruning.statistics.grams import Gram, StoredGrams, fit
from pruning.statistics.streaming import (
    BATCH_TOKENS,
    become,
    layer_kinds,
    mapped,
    one_layer_body,
    return_freed_memory,
)
from pruning.units import BLOCKS, KINDS, READERS, Kind
from pruning.weights.checkpoint import Checkpoint


@dataclass(frozen=True)
class Reader:
    """What reads a block's units from now on: outputs = weight · inputs[kept] + bias."""

    num_inputs: int
    kept_K: Tensor
    weight_HK: Tensor
    bias_H: Tensor | None = None

    @classmethod
    def dense(cls, tensors: Mapping[str, Tensor], kind: Kind, device: torch.device) -> "Reader":
        """A layer's own reader, from tensors named as Checkpoint.layer names them."""
        name = f"{BLOCKS[kind]}.{READERS[kind]}"
        weight_HC, bias_H = tensors[f"{name}.weight"].to(device), tensors.get(f"{name}.bias")
        every_C = torch.arange(weight_HC.shape[1], device=device)
        bias_H = None if bias_H is None else bias_H.to(device)
        return cls(len(every_C), every_C, weight_HC, bias_H)

    def __call__(self, inputs: Tensor) -> Tensor:
        """What it makes of all inputs, (…, C) → (…, H); float32."""
        read = inputs if len(self.kept_K) == self.num_inputs else inputs[..., self.kept_K]
        outputs: Tensor = read @ self.weight_HK.float().T
        return outputs if self.bias_H is None else outputs + self.bias_H.float()

    def named(self, kind: Kind) -> dict[str, Tensor]:
        """Weight, and bias if there is one, on the CPU, named as Checkpoint.layer names them."""
        name = f"{BLOCKS[kind]}.{READERS[kind]}"
        named = {f"{name}.weight": self.weight_HK.cpu().contiguous()}
        if self.bias_H is not None:
            named[f"{name}.bias"] = self.bias_H.cpu()
        return named


@dataclass(frozen=True)
class Goal:
    """Σ y xᵀ and Σ y of the outputs y that a reader should give, x being its inputs that stay."""

    products_HK: Tensor
    sum_H: Tensor  # float64

    @classmethod
    def own(cls, dense: Reader, gram: Gram, kept_K: Tensor) -> "Goal":
        """What the dense reader makes of all inputs that a Gram has seen."""
        weight_HC = dense.weight_HK.to(gram.products_CC)
        products_HK = weight_HC @ gram.products_CC[:, kept_K]
        sum_H = weight_HC.double() @ gram.sum_C
        if dense.bias_H is not None:
            bias_H = dense.bias_H.double()
            products_HK += torch.outer(bias_H, gram.sum_C[kept_K]).to(products_HK)
            sum_H += gram.count * bias_H
        return cls(products_HK, sum_H)

    def towards(self, other: "Goal", part: float) -> "Goal":
        """A part of the way to another goal for the same inputs."""
        products_HK = torch.lerp(self.products_HK, other.products_HK, part)
        return Goal(products_HK, torch.lerp(self.sum_H, other.sum_H, part))


def refit_reader(
    dense: Reader, gram: Gram, goal: Goal, kept_K: Tensor, damping: float, gains_bias: bool
) -> Reader:
    """The reader of the kept inputs that comes closest to a goal; in the dtypes of the dense one.

    With a bias, weights are fit to the deviations from the means, and the bias makes up the means.
    """
    has_bias = gains_bias or dense.bias_H is not None
    gram_CC, products_HK, mean_K = gram.products_CC, goal.products_HK, gram.mean_C[kept_K]
    if has_bias:
        gram_CC = gram.centred_CC()
        products_HK = products_HK - torch.outer(goal.sum_H, mean_K).to(products_HK)
    dense_HK = dense.weight_HK[:, kept_K]
    weight_HK = fit(products_HK, gram_CC, kept_K, damping, dense_HK).to(dense_HK.dtype)
    if not has_bias:
        return Reader(dense.num_inputs, kept_K, weight_HK)
    bias_H = goal.sum_H / gram.count - weight_HK.double() @ mean_K
    return Reader(dense.num_inputs, kept_K, weight_HK, bias_H.to(weight_HK.dtype))


class Blocks:
    """The blocks of a base, one layer of them at a time, each up to the inputs of its reader."""

    def __init__(self, checkpoint: Checkpoint):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._body, _ = one_layer_body(checkpoint, self.device)
        self._kinds = layer_kinds(checkpoint)
        self._branch = _Branch(self._body.layers[0], checkpoint.geometry.architecture)
        self._body.layers = nn.ModuleList([self._branch])
        self._filled = -1

    def fill(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        """Put a layer's tensors, named as Checkpoint.layer names them, in the place of the last."""
        become(self._body, self._kinds[index])
        readers = tuple(f"{BLOCKS[kind]}.{READERS[kind]}." for kind in READERS)
        rows = {name: t for name, t in tensors.items() if not name.startswith(readers)}
        self._branch.layer.load_state_dict(rows)
        if index != self._filled:  # not again for every adapter of a layer
            return_freed_memory()
        self._filled = index

    @torch.no_grad()
    def inputs(self, kind: Kind, states_BTH: Tensor, entry_HH: Tensor | None = None) -> Tensor:
        """What the reader of a block is given, (B, T, C), for hidden states before the block.

        With an `entry` the writers read what it makes of the normed states.
        """
        self._branch.kind, self._branch.entry_HH = kind, entry_HH
        states_BTH = states_BTH.to(self.device)
        found: Tensor = self._body(inputs_embeds=states_BTH, use_cache=False).last_hidden_state
        return found

    @torch.no_grad()
    def normed(self, kind: Kind, states_BTH: Tensor) -> Tensor:
        """What the writers of a block read, (B, T, H), for hidden states before the block."""
        return self._branch.normed(kind, states_BTH.to(self.device))

    @torch.no_grad()
    def finished(self, kind: Kind, outputs_BTH: Tensor) -> Tensor:
        """What a block adds to the hidden states when its reader gives `outputs_BTH`."""
        norm = self._branch.block(kind).post_norm
        return self._branch.layer.get_submodule(norm)(outputs_BTH) if norm else outputs_BTH


class _Branch(nn.Module):
    """Stands for a decoder layer of the stock model and ends where the reader would begin."""

    kind: Kind = "kv_group"
    entry_HH: Tensor | None = None

    def __init__(self, layer: Any, architecture: Architecture):
        super().__init__()
        self.architecture = architecture
        layer.self_attn.o_proj, layer.mlp.down_proj = nn.Identity(), nn.Identity()
        self.layer = layer

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        normed = self.normed(self.kind, hidden_states)
        if self.entry_HH is not None:
            normed = normed @ self.entry_HH.T
        if self.kind == "ffn_channel":
            inputs: Tensor = self.layer.mlp(normed)
        else:
            inputs, _ = self.layer.self_attn(hidden_states=normed, **kwargs)
        return inputs

    def normed(self, kind: Kind, hidden_states: Tensor) -> Tensor:
        normed: Tensor = self.layer.get_submodule(self.block(kind).norm)(hidden_states)
        return normed

    def block(self, kind: Kind) -> Block:
        return self.architecture.mlp if kind == "ffn_channel" else self.architecture.attention


Batch = tuple[slice, slice]  # sequences, and their tokens up to the last that counts


class Passage:
    """Sequences on their way through a base; what is below `work` survives a kill.

    `counted_ST` says which tokens count in Grams: not padding, and not sinks where those are to be
    left out.  What stands right of all that count is never run: sort sequences by length.
    """

    def __init__(self, checkpoint: Checkpoint, ids_ST: Tensor, counted_ST: Tensor, work: Path):
        self.ids_ST, self.counted_ST, self.work = ids_ST, counted_ST, work
        self._batches = _batches(counted_ST)
        self.shape = (*ids_ST.shape, checkpoint.geometry.hidden_size)
        work.mkdir(parents=True, exist_ok=True)
        found = [int(path.stem.partition("-")[2]) for path in work.glob("states-*.f32")]
        if not found:
            self._embed(checkpoint)
        self.layer = max(found, default=0)  # the layer that is next

    def gram(self, blocks: Blocks, kind: Kind, entry_HH: Tensor | None = None) -> Gram:
        """Run the layer's block up to its reader; the Gram of what the reader is given."""
        gram = None
        for batch, inputs_BTC in self.inputs(blocks, kind, entry_HH):
            gram = gram or Gram(inputs_BTC.shape[2], inputs_BTC.device)
            gram.add(inputs_BTC[self.counted_ST[batch]])
        assert gram is not None
        return gram

    def inputs(
        self, blocks: Blocks, kind: Kind, entry_HH: Tensor | None = None
    ) -> Iterator[tuple[Batch, Tensor]]:
        """Run the layer's block up to its reader: batches of sequences, and what it is given."""
        for batch in self._batches:
            inputs_BTC = blocks.inputs(kind, self.before(kind)[batch], entry_HH)
            self._inputs(inputs_BTC.shape[2])[batch] = inputs_BTC.cpu()
            yield batch, inputs_BTC

    def read(self, blocks: Blocks, kind: Kind, reader: Reader) -> None:
        """Add what a block makes of the inputs of the last run, with this reader."""
        for batch in self._batches:
            self._add(blocks, kind, reader, batch, self._inputs(reader.num_inputs)[batch])

    def follow(self, blocks: Blocks, kind: Kind, reader: Reader) -> None:
        """Run the layer's block and its reader, and keep nothing but the hidden states."""
        for batch in self._batches:
            self._add(blocks, kind, reader, batch, blocks.inputs(kind, self.before(kind)[batch]))

    def entry(self, blocks: Blocks, kind: Kind, guide: "Passage", damping: float) -> Tensor:
        """The map of the normed states here that comes closest to those of `guide`; (H, H).

        Damped towards the identity; float32.
        """
        hidden = self.shape[2]
        gram, every_H = Gram(hidden, blocks.device), torch.arange(hidden, device=blocks.device)
        products_HH = torch.zeros_like(gram.products_CC)
        for batch in self._batches:
            slim_NH, dense_NH = (
                blocks.normed(kind, passage.before(kind)[batch])[self.counted_ST[batch]]
                for passage in (self, guide)
            )
            gram.add(slim_NH)
            products_HH += dense_NH.T @ slim_NH
        entry_HH = fit(products_HH, gram.products_CC, every_H, damping, torch.eye(hidden))
        return entry_HH.float()

    def goal(self, kind: Kind, gram: Gram, kept_K: Tensor, guide: "Passage") -> Goal:
        """For the kept inputs of `gram`: what leads from the states here to those of `guide`.

        From those before the block to those after it, which `guide` has passed already.
        """
        hidden, (num_inputs, _) = self.shape[2], gram.products_CC.shape
        products_HK = gram.products_CC.new_zeros(hidden, len(kept_K))
        sum_H = gram.sum_C.new_zeros(hidden)
        for batch in self._batches:
            ahead_BTH = guide.after(kind)[batch] - self.before(kind)[batch]
            ahead_NH = ahead_BTH[self.counted_ST[batch]].to(products_HK.device)
            inputs_NC = self._inputs(num_inputs)[batch][self.counted_ST[batch]]
            inputs_NK = inputs_NC.to(products_HK.device)[:, kept_K]
            products_HK += ahead_NH.T @ inputs_NK
            sum_H += ahead_NH.sum(dim=0, dtype=torch.float64)
        return Goal(products_HK, sum_H)

    def skip(self, kind: Kind) -> None:
        """The layer has no such block."""
        shutil.copyfile(self.work / self._before(kind), self.work / self._after(kind))

    def finish_layer(self) -> None:
        """Go on to the next layer; a kill before this returns costs the work on this one."""
        (self.work / self._after("ffn_channel")).rename(self.work / f"states-{self.layer + 1}.f32")
        (self.work / f"states-{self.layer}.f32").unlink(missing_ok=True)
        self.layer += 1

    def _embed(self, checkpoint: Checkpoint) -> None:
        for batch in self._batches:
            self._states("embedded.f32")[batch] = checkpoint.embedded(self.ids_ST[batch])
        (self.work / "embedded.f32").rename(self.work / "states-0.f32")

    def before(self, kind: Kind) -> Tensor:
        """The hidden states that a block is given; (S, T, H)."""
        return self._states(self._before(kind))

    def after(self, kind: Kind) -> Tensor:
        """The hidden states that a block leaves, once its reader has read; (S, T, H)."""
        return self._states(self._after(kind))

    def _add(
        self, blocks: Blocks, kind: Kind, reader: Reader, batch: Batch, inputs_BTC: Tensor
    ) -> None:
        outputs_BTH = reader(inputs_BTC.to(reader.weight_HK.device))
        added_BTH = blocks.finished(kind, outputs_BTH)
        self.after(kind)[batch] = self.before(kind)[batch] + added_BTH.cpu()

    def _before(self, kind: Kind) -> str:
        return f"states-{self.layer}.f32" if kind == "kv_group" else "attended.f32"

    def _after(self, kind: Kind) -> str:
        return "attended.f32" if kind == "kv_group" else "finished.f32"

    def _states(self, name: str) -> Tensor:
        return mapped(self.work / name, self.shape)

    def _inputs(self, num_channels: int) -> Tensor:
        return mapped(self.work / f"inputs-{num_channels}.f32", (*self.shape[:2], num_channels))


def _batches(counted_ST: Tensor) -> list[Batch]:
    """Neighbouring sequences, of about BATCH_TOKENS tokens together, as long as the longest."""
    lengths_S = 1 + (counted_ST * torch.arange(counted_ST.shape[1])).amax(dim=1)
    found: list[Batch] = []
    start = longest = 0
    for row, length in enumerate(lengths_S.tolist()):
        if row > start and (row + 1 - start) * max(longest, length) > BATCH_TOKENS:
            found.append((slice(start, row), slice(longest)))
            start, longest = row, 0
        longest = max(longest, length)
    return [*found, (slice(start, len(counted_ST)), slice(longest))]


def counted(ids_ST: Tensor, sink_tokens: int) -> Tensor:
    """All tokens but the first `sink_tokens` of each sequence; (S, T) bool."""
    counted_ST = torch.ones_like(ids_ST, dtype=torch.bool)
    counted_ST[:, :sink_tokens] = False
    return counted_ST


def dense_grams(passage: Passage, checkpoint: Checkpoint, out: Path, progress: Progress) -> None:
    """Store the Grams of all readers of a base as it is; two of them are ever in memory.

    Goes on where the passage is: a kill costs one layer's work.
    """
    blocks, grams = Blocks(checkpoint), StoredGrams(out)
    num_layers = len(checkpoint.geometry.layers)
    for layer in range(passage.layer, num_layers):
        progress(layer / num_layers, f"Gram matrices, layer {layer + 1} of {num_layers}")
        tensors = checkpoint.layer(layer)
        blocks.fill(layer, tensors)
        for kind in KINDS:
            grams.store((layer, READERS[kind]), passage.gram(blocks, kind))
            passage.read(blocks, kind, Reader.dense(tensors, kind, blocks.device))
        passage.finish_layer()
