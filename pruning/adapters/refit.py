"""Refits carried adapters in closed form: their atoms are spent on what the cut took from them.

An idea of this project, on two old ones: least squares on a Gram, and the best approximation of
low rank in its norm (Eckart and Young, Psychometrika 1936, https://doi.org/10.1007/BF02288367).
With the adapter active, a reader of the dense base gives (W + ΔW) x; the reader of the slim base,
W' on the inputs K that stay, gives W' x_K.  The change D that brings the second closest to the
first over the adapter's own text is one solve; of all changes of the adapter's rank, the one
closest to D there keeps the left singular vectors U of D L, L Lᵀ the Gram of x_K: it is U Uᵀ D.
q, k, v, gate and up projections need no refit: what stays of them does what it did.

Layer after layer, on hidden states that the slim base and the adapters as refit so far have made.
"""

# Shape suffixes:  S = sequences,  T = tokens,  H = outputs of a reader,  C = its inputs,
# K = inputs that stay,  R = atoms.

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import safe_open
from torch import Tensor

from pruning import evaluation
from pruning.adapters.algebra import Bag, bags_of, balanced, fold, positive
from pruning.adapters.atoms import Adapter, Atoms, Key
from pruning.adapters.carry import Cut, load, project, save
from pruning.adapters.peft_format import CALIBRATION
from pruning.progress import Progress
from pruning.recipe import PruneSpec
from pruning.statistics.grams import Gram, refit
from pruning.statistics.walk import Blocks, Passage, Reader, counted
from pruning.text import load_tokenizer
from pruning.units import BLOCKS, KINDS, READERS, Kind, selections
from pruning.weights.checkpoint import Checkpoint
from pruning.weights.tensors import block_of

DAMPING = 0.01  # of the mean of the Gram's diagonal


@dataclass(frozen=True)
class OwnText:
    """Sequences of an adapter's text, padded on the right, and which of their tokens count."""

    ids_ST: Tensor
    counted_ST: Tensor

    @classmethod
    def padded(cls, rows: Sequence[list[int]], sink_tokens: int) -> "OwnText":
        """Rows of different lengths; padding stands right of what a causal model looks at."""
        shape = len(rows), max(map(len, rows))
        ids_ST = torch.zeros(shape, dtype=torch.long)
        counted_ST = torch.zeros(shape, dtype=torch.bool)
        for number, ids in enumerate(rows):
            ids_ST[number, : len(ids)] = torch.tensor(ids)
            counted_ST[number, sink_tokens : len(ids)] = True
        return cls(ids_ST, counted_ST)


def carry_refit(
    spec: PruneSpec,
    checkpoint: Checkpoint,
    cut: Cut,
    slim_weights: Path,
    ids_ST: Tensor,
    out: Path,
    progress: Progress,
) -> None:
    """Carry all adapters of a job to `out`/adapters, refit on the text of each.

    That is the rows of its calibration.jsonl, cut to the length of the recipe's calibration
    sequences, or those sequences, `ids_ST`, where it has none.  Raises InvalidInput as `carry`.
    """
    tokenizer, recipe = load_tokenizer(spec.base), spec.recipe
    common = OwnText(ids_ST, counted(ids_ST, recipe.sink_tokens))
    adapters: dict[str, Adapter] = {}
    texts: dict[str, OwnText] = {}
    for name, source in sorted(spec.adapters.items()):
        field, rows = f"adapters.{name}", source / CALIBRATION
        adapters[name], texts[name] = load(source, cut, field), common
        if rows.is_file():
            examples = evaluation.rows(tokenizer, rows, recipe.calibration.length, field)
            texts[name] = OwnText.padded([ids for ids, _ in examples], recipe.sink_tokens)
    with TemporaryDirectory(dir=out) as states:
        carried = refit_adapters(
            adapters, texts, checkpoint, cut, slim_weights, Path(states), progress
        )
    for name, adapter in carried.items():
        save(adapter, spec.adapters[name], out / "adapters" / name, cut, f"adapters.{name}")


def refit_adapters(
    adapters: Mapping[str, Adapter],
    texts: Mapping[str, OwnText],
    checkpoint: Checkpoint,
    cut: Cut,
    slim_weights: Path,
    work: Path,
    progress: Progress,
) -> dict[str, Adapter]:
    """Project adapters of a dense base to its slim one, the atoms of their readers refit.

    `slim_weights` is the slim base's safetensors file, whose other linears are those of the dense
    base.  Ranks, alphas and modules stay what they were.  All adapters pass a layer together.
    """
    carried = {name: project(adapter, cut.dense, cut.plan) for name, adapter in adapters.items()}
    travels = {
        name: _Travel(
            bags_of(adapter),
            dict(carried[name].atoms),
            bool(adapter.config.get("use_rslora")),
            Passage(checkpoint, texts[name].ids_ST, texts[name].counted_ST, work / name),
        )
        for name, adapter in adapters.items()
    }
    blocks, num_layers = Blocks(checkpoint), len(cut.plan.layers)
    for layer in range(num_layers):
        tensors = checkpoint.layer(layer)
        readers = _slim_readers(slim_weights, cut, layer, blocks.device)
        for number, (name, travel) in enumerate(travels.items()):
            fraction = (layer + number / len(travels)) / num_layers
            progress(fraction, f"refitting {name}, layer {layer + 1} of {num_layers}")
            _pass_layer(travel, blocks, tensors, readers, cut, layer)
    return {name: replace(carried[name], atoms=travels[name].atoms) for name in adapters}


@dataclass(frozen=True)
class _Travel:
    """An adapter on its way through the layers; `atoms`, of the slim base, change as it goes."""

    dense: Mapping[Key, Bag]
    atoms: dict[Key, Atoms]
    rslora: bool
    passage: Passage


def _pass_layer(
    travel: _Travel,
    blocks: Blocks,
    tensors: Mapping[str, Tensor],
    readers: Mapping[Kind, Reader],
    cut: Cut,
    layer: int,
) -> None:
    adapted = _adapted(tensors, travel, layer)
    blocks.fill(layer, adapted)
    for kind in KINDS:
        if kind not in readers:
            travel.passage.skip(kind)
            continue
        gram, reader = travel.passage.gram(blocks, kind), readers[kind]
        key = (cut.plan.kept_layers.index(layer), READERS[kind])
        if atoms := travel.atoms.get(key):
            target_HC = Reader.dense(adapted, kind, reader.weight_HK.device).weight_HK
            bag = closest(target_HC, reader, fold(atoms, travel.rslora), gram)
            travel.atoms[key] = _unfolded(bag, atoms, travel.rslora)
            reader = replace(reader, weight_HK=reader.weight_HK.float() + bag.delta)
        travel.passage.read(blocks, kind, reader)
    travel.passage.finish_layer()


def closest(target_HC: Tensor, reader: Reader, carried: Bag, gram: Gram) -> Bag:
    """The atoms, as many as were carried, that bring a reader closest to one that has all inputs.

    What the text does not decide stays with the atoms as they were carried.  float32.
    """
    gram_CC, kept_K = gram.products_CC, reader.kept_K
    slim_HK = reader.weight_HK.to(gram_CC)
    anchor_HK = slim_HK + carried.delta.to(gram_CC)
    change_HK = refit(target_HC, gram_CC, kept_K, DAMPING, anchor_HK) - slim_HK
    energy_HH = change_HK @ gram_CC[kept_K][:, kept_K] @ change_HK.T
    left_HR = torch.linalg.eigh((energy_HH + energy_HH.T) / 2).eigenvectors[:, -carried.rank :]
    return positive(balanced(Bag((left_HR.T @ change_HK).float(), left_HR.float())))


def _adapted(tensors: Mapping[str, Tensor], travel: _Travel, layer: int) -> dict[str, Tensor]:
    """A dense layer with the adapter merged into it."""
    adapted = dict(tensors)
    for (index, linear), bag in travel.dense.items():
        if index == layer:
            name = f"{block_of(linear)}.{linear}.weight"
            adapted[name] = adapted[name].float() + bag.delta
    return adapted


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
    return replace(atoms, a=bag.a_RI.to(atoms.a), b=(bag.b_OR / scale).to(atoms.b))
