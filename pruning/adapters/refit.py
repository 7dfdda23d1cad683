"""Refits carried adapters in closed form: their atoms are spent on what the cut took from them.

An idea of this project, on two old ones: least squares on a Gram, and the best approximation of
low rank in its norm (Eckart and Young, Psychometrika 1936, https://doi.org/10.1007/BF02288367).
The adapter's own text passes the dense base and the slim one side by side, adapter active in both.
At every reader the slim base shall have what the dense one has: the goal lies half way between what
the dense reader, W + ΔW, would make of the slim base's own states, and what brings these states
back to those of the dense base.  The adapter's atoms become the change of the slim reader, of all
those of their rank, that comes closest to the goal: one Cholesky factorization of the Gram of the
inputs that stay, and the leading singular atoms of what it makes of the goal.  q, k, v, gate and up
projections stay as carried: refitting them to the outputs of the dense base gained nothing.

Layer after layer, on hidden states that the slim base and the adapters as refit so far have made.
"""

# Shape suffixes:  S = sequences,  T = tokens,  B = sequences of a batch,  N = tokens that count,
# H = outputs of a reader,  C = its inputs,  K = inputs that stay,  R = atoms.

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad

from pruning.adapters.algebra import Bag, bags_of, balanced, fold, positive
from pruning.adapters.atoms import Adapter, Atoms
from pruning.adapters.carry import Cut, project
from pruning.adapters.own_text import OwnText
from pruning.progress import Progress
from pruning.statistics.grams import Gram, fit_low_rank
from pruning.statistics.walk import Blocks, Passage, Reader
from pruning.units import BLOCKS, KINDS, READERS, Kind, selections
from pruning.weights.checkpoint import Checkpoint
from pruning.weights.tensors import block_of

DAMPING = 0.03  # of the mean of the Gram's diagonal
RETURN = 0.5  # how much of the goal is to come back to the states of the dense base


def refit_adapters(
    adapters: Mapping[str, Adapter],
    texts: Mapping[str, OwnText],
    checkpoint: Checkpoint,
    cut: Cut,
    slim_weights: Path,
    state: Path,
    progress: Progress,
) -> dict[str, Adapter]:
    """Project adapters of a dense base to its slim one, the atoms of their readers refit.

    `slim_weights` is the slim base's safetensors file; it may differ from the dense base in the
    weights of linears.  Ranks, alphas and modules stay what they were.  All adapters pass a layer
    together; what is below `state` survives a kill, which costs one adapter's work on one layer.
    """
    travels = {
        name: _Travel(adapter, texts[name], checkpoint, cut, state / name)
        for name, adapter in adapters.items()
    }
    blocks, num_layers = Blocks(checkpoint), len(cut.plan.layers)
    for layer in range(min((t.layer for t in travels.values()), default=num_layers), num_layers):
        tensors = checkpoint.layer(layer)
        slim_tensors = {**tensors, **_slim_writers(slim_weights, cut, layer, tensors)}
        readers = _slim_readers(slim_weights, cut, layer, blocks.device)
        for number, (name, travel) in enumerate(travels.items()):
            if travel.layer > layer:  # before a kill
                continue
            fraction = (layer + number / len(travels)) / num_layers
            progress(fraction, f"refitting {name}, layer {layer + 1} of {num_layers}")
            travel.pass_layer(blocks, tensors, slim_tensors, readers)
    return {name: travel.arrived() for name, travel in travels.items()}


class _Travel:
    """An adapter on its way through the layers of both bases, whose states lie below `state`."""

    def __init__(
        self, adapter: Adapter, text: OwnText, checkpoint: Checkpoint, cut: Cut, state: Path
    ):
        self._cut, self._state = cut, state
        self._bags = bags_of(adapter)
        self._carried = project(adapter, cut.dense, cut.plan)
        self._weights_ST = text.weights_ST
        counted_ST = text.weights_ST > 0
        self._dense = Passage(checkpoint, text.ids_ST, counted_ST, state / "dense")
        self._slim = Passage(checkpoint, text.ids_ST, counted_ST, state / "slim")
        if self._dense.layer < self._slim.layer:  # killed between the two
            self._dense.finish_layer()

    @property
    def layer(self) -> int:
        """The layer that is next."""
        return self._slim.layer

    def pass_layer(
        self,
        blocks: Blocks,
        tensors: Mapping[str, Tensor],
        slim_tensors: Mapping[str, Tensor],
        readers: Mapping[Kind, Reader],
    ) -> None:
        """Through the next layer, of these tensors in the dense base.

        `slim_tensors` are the same with what the slim base has of its writers in their place.
        """
        adapted = self._adapted(tensors)
        dense = {kind: Reader.dense(adapted, kind, blocks.device) for kind in KINDS}
        blocks.fill(self.layer, adapted)
        for kind in KINDS:
            self._dense.follow(blocks, kind, dense[kind])
        blocks.fill(self.layer, self._adapted(slim_tensors))
        refit: dict[str, Tensor] = {}
        for kind in KINDS:
            if kind not in readers:
                self._slim.skip(kind)
                continue
            reader = readers[kind]
            gram, misses_HK = self._misses(blocks, kind, dense[kind], reader)
            if atoms := self._atoms(kind):
                bag = closest(misses_HK, gram, fold(atoms, self._rslora))
                found = _unfolded(bag, atoms, self._rslora)
                refit |= {f"{READERS[kind]}.a": found.a, f"{READERS[kind]}.b": found.b}
                reader = replace(reader, weight_HK=reader.weight_HK.float() + bag.delta)
            self._slim.read(blocks, kind, reader)
        save_file(refit, self._state / f"layer-{self.layer}.safetensors")
        self._slim.finish_layer()
        self._dense.finish_layer()

    def arrived(self) -> Adapter:
        """The adapter with the atoms of all layers as they were refit."""
        atoms = dict(self._carried.atoms)
        for new, old in enumerate(self._cut.plan.kept_layers):
            refit = load_file(self._state / f"layer-{old}.safetensors")
            for linear in {name.partition(".")[0] for name in refit}:
                found = {"a": refit[f"{linear}.a"], "b": refit[f"{linear}.b"]}
                atoms[new, linear] = replace(atoms[new, linear], **found)
        return replace(self._carried, atoms=atoms)

    @property
    def _rslora(self) -> bool:
        return bool(self._carried.config.get("use_rslora"))

    def _atoms(self, kind: Kind) -> Atoms | None:
        """What was carried of the adapter on the reader of the layer's block."""
        new = self._cut.plan.kept_layers.index(self.layer)
        return self._carried.atoms.get((new, READERS[kind]))

    def _adapted(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The dense layer with the adapter merged into it."""
        adapted = dict(tensors)
        for (index, linear), bag in self._bags.items():
            if index == self.layer:
                name = f"{block_of(linear)}.{linear}.weight"
                adapted[name] = adapted[name].float() + bag.delta
        return adapted

    def _misses(
        self, blocks: Blocks, kind: Kind, dense: Reader, slim: Reader
    ) -> tuple[Gram, Tensor]:
        """The Gram of the inputs that stay, and Σ y xᵀ of what the slim reader lacks to its goals.

        Tokens count as they weigh.
        """
        gram = Gram(len(slim.kept_K), blocks.device)
        misses_HK = gram.products_CC.new_zeros(len(slim.weight_HK), len(slim.kept_K))
        lacks = _lacking(dense, slim)
        before_STH, wanted_STH = self._slim.before(kind), self._dense.after(kind)
        for batch, inputs_BTC in self._slim.inputs(blocks, kind):
            weights_BT = self._weights_ST[batch].to(blocks.device)
            counts_BT = weights_BT > 0
            root_N1 = weights_BT[counts_BT].sqrt()[:, None]
            inputs_NC = inputs_BTC[counts_BT]
            back_NH = (wanted_STH[batch] - before_STH[batch]).to(blocks.device)[counts_BT]
            misses_NH = RETURN * back_NH + lacks(inputs_NC)
            inputs_NK = root_N1 * inputs_NC[:, slim.kept_K]
            gram.add(inputs_NK)
            misses_HK += (root_N1 * misses_NH).T @ inputs_NK
        return gram, misses_HK


def closest(misses_HK: Tensor, gram: Gram, carried: Bag) -> Bag:
    """The atoms, as many as were carried, that bring a slim reader closest to its goals.

    What the text does not decide stays with the atoms as they were carried.  Atoms beyond the width
    of the reader are zero.
    """
    anchor_HK = carried.delta.to(misses_HK.device)
    b_HR, a_RK = fit_low_rank(misses_HK, gram.products_CC, DAMPING, anchor_HK, carried.rank)
    spare = carried.rank - len(a_RK)
    return positive(balanced(Bag(pad(a_RK, (0, 0, 0, spare)), pad(b_HR, (0, spare)))))


def _lacking(dense: Reader, slim: Reader) -> Reader:
    """What the goals are ahead of a slim reader by, but for the return to the dense states."""
    weight_HC = (1 - RETURN) * dense.weight_HK.float()
    weight_HC[:, slim.kept_K] -= slim.weight_HK.float()
    bias_H = None
    if slim.bias_H is not None:
        bias_H = -slim.bias_H.float()
        if dense.bias_H is not None:
            bias_H += (1 - RETURN) * dense.bias_H.float()
    return Reader(dense.num_inputs, dense.kept_K, weight_HC, bias_H)


def _slim_writers(
    weights: Path, cut: Cut, layer: int, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The dense weights of a layer's writers with those of the slim base in the rows that stay."""
    writers: dict[str, Tensor] = {}
    chosen = selections(cut.dense, layer, cut.plan.layers[layer])
    with safe_open(weights, framework="pt") as file:
        for linear, kept in chosen.items():
            if kept.axis == 0:
                new, name = cut.plan.kept_layers.index(layer), f"{block_of(linear)}.{linear}.weight"
                slim_KH = file.get_tensor(f"model.layers.{new}.{name}")
                rows_K = torch.tensor(kept.indices)
                writers[name] = tensors[name].index_copy(0, rows_K, slim_KH.to(tensors[name]))
    return writers


def _slim_readers(weights: Path, cut: Cut, layer: int, device: torch.device) -> dict[Kind, Reader]:
    """The readers that a layer still has, on `device`."""
    readers: dict[Kind, Reader] = {}
    chosen = selections(cut.dense, layer, cut.plan.layers[layer])
    with safe_open(weights, framework="pt") as file:
        for kind in KINDS:
            shape = cut.dense.linear_shape(layer, READERS[kind])
            assert shape is not None  # a dense base lacks no block
            if READERS[kind] in chosen:
                new = cut.plan.kept_layers.index(layer)
                name = f"model.layers.{new}.{BLOCKS[kind]}.{READERS[kind]}"
                bias_H = file.get_tensor(f"{name}.bias") if f"{name}.bias" in file.keys() else None
                readers[kind] = Reader(
                    shape[1],
                    torch.tensor(chosen[READERS[kind]].indices, device=device),
                    file.get_tensor(f"{name}.weight").to(device),
                    None if bias_H is None else bias_H.to(device),
                )
    return readers


def _unfolded(bag: Bag, atoms: Atoms, rslora: bool) -> Atoms:
    """A bag as atoms of the alpha, rank and dtypes that these had."""
    scale = atoms.alpha / (bag.rank**0.5 if rslora else bag.rank)
    a, b = bag.a_RI.to("cpu", atoms.a.dtype), (bag.b_OR / scale).to("cpu", atoms.b.dtype)
    return replace(atoms, a=a.contiguous(), b=b.contiguous())
