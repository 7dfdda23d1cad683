"""Closed form: the kept inputs of every o_proj and down_proj take over from those that left.

Hu et al., "FASP: Fast and Accurate Structured Pruning of Large Language Models", arXiv 2025,
https://arxiv.org/abs/2501.09412: least squares on the Gram of the inputs, one solve per reader.
Layer after layer, each on what the new layers before it and the new attention beside it make of
the calibration text.  The goal is what the dense weights would make of those same inputs (`layer`),
or, an idea of ours, a part of the way from there to the hidden states of the dense base (`stream`):
so each reader also makes up for what the blocks before it lost.  Where the slim base has a bias,
weights and bias are refit together: of FLAP's bias (An et al., AAAI 2024,
https://arxiv.org/abs/2312.11983) this is the best one.  With `writers` q, k, v, gate and up are
refit as well, all of a block by one map T: their weights W become W T, where T brings the normed
states of the slim base as near as can be to those of the dense one, by least squares, too.
With `self_calibration` all are fit to text that the dense base writes on from the calibration text.
"""

from collections.abc import Sequence

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pruning.methods.recovery import ClosedFormParams
from pruning.progress import Progress, part
from pruning.registry import RecoveryContext
from pruning.self_calibration import written
from pruning.statistics.walk import Blocks, Goal, Passage, Reader, counted, refit_reader
from pruning.units import BLOCKS, KINDS, READERS, selections
from pruning.weights.rewriting import WEIGHTS, rewrite

ENTRY = "entry"  # what a layer's file calls the map of a block's normed states
RETURN = 0.6  # of the way to the dense hidden states; more holds for the calibration text alone


def recover(context: RecoveryContext, params: ClosedFormParams, progress: Progress) -> None:
    """Refit the readers of the slim base, from the dense weights; a kill costs one layer's work."""
    num_layers, checkpoint, ids_ST = len(context.plan.layers), context.checkpoint, context.ids_ST
    if count := params.self_calibration:
        seed, writing = context.spec.recipe.seed, part(progress, 0, 0.5)
        own_NT = written(checkpoint.directory, ids_ST, count, seed, context.state, writing)
        ids_ST, progress = torch.cat([ids_ST, own_NT]), part(progress, 0.5, 1)
    tokens_ST = counted(ids_ST, context.spec.recipe.sink_tokens)
    passage = Passage(checkpoint, ids_ST, tokens_ST, context.state)
    guide = None
    if params.goal == "stream":
        guide = Passage(checkpoint, ids_ST, tokens_ST, context.state / "dense")
        if guide.layer < passage.layer:  # killed between the two
            guide.finish_layer()
    blocks = Blocks(checkpoint)
    while passage.layer < num_layers:
        progress(passage.layer / num_layers, f"refitting layer {passage.layer + 1} of {num_layers}")
        _refit_layer(context, params, blocks, passage, guide)
        passage.finish_layer()
        if guide:
            guide.finish_layer()
    rewrite(context.source, context.destination, lambda name: _tensor(context, name))


def _refit_layer(
    context: RecoveryContext,
    params: ClosedFormParams,
    blocks: Blocks,
    passage: Passage,
    guide: Passage | None,
) -> None:
    """Take `passage` through one layer, and keep the layer's new readers on disk.

    `guide` goes through the dense layer and shows the states to come back to, if there is one.
    """
    layer, found = passage.layer, dict[str, Tensor]()
    tensors = context.checkpoint.layer(layer)
    blocks.fill(layer, tensors)
    chosen = selections(context.checkpoint.geometry, layer, context.plan.layers[layer])
    for kind in KINDS:
        linear, dense = READERS[kind], Reader.dense(tensors, kind, blocks.device)
        if guide:
            guide.follow(blocks, kind, dense)
        if linear not in chosen:
            passage.skip(kind)
            continue
        entry_HH = None
        if guide and params.writers:
            entry_HH = passage.entry(blocks, kind, guide, params.damping)
            found[f"{BLOCKS[kind]}.{ENTRY}"] = entry_HH.cpu()
        gram, reader = passage.gram(blocks, kind, entry_HH), dense
        kept_K = torch.tensor(chosen[linear].indices, device=blocks.device)
        is_cut = len(kept_K) < dense.num_inputs
        if is_cut or guide:
            goal = Goal.own(dense, gram, kept_K)
            if guide:
                goal = goal.towards(passage.goal(kind, gram, kept_K, guide), RETURN)
            gains_bias = is_cut and context.plan.bias_compensation
            reader = refit_reader(dense, gram, goal, kept_K, params.damping, gains_bias)
        passage.read(blocks, kind, reader)
        found |= reader.named(kind)
    save_file(found, context.state / f"layer-{layer}.safetensors")


def _tensor(context: RecoveryContext, name: str) -> Tensor:
    """A tensor of the repaired base, refit if there is such a one, by its name there."""
    with safe_open(context.source / WEIGHTS, framework="pt") as cut:
        as_cut: Tensor = cut.get_tensor(name)
    parts = name.split(".")
    if parts[1] != "layers":
        return as_cut
    layer, block, key = context.plan.kept_layers[int(parts[2])], parts[3], ".".join(parts[3:])
    with safe_open(context.state / f"layer-{layer}.safetensors", framework="pt") as found:
        if key in found.keys():
            refit: Tensor = found.get_tensor(key)
            return refit
        if f"{block}.{ENTRY}" in found.keys() and _is_writer(context, parts[4:]):
            entry_HH: Tensor = found.get_tensor(f"{block}.{ENTRY}")
            return as_cut.float() @ entry_HH
    return as_cut


def _is_writer(context: RecoveryContext, parts: Sequence[str]) -> bool:
    """Whether what is so called within its block is the weight of a writer."""
    linear, *rest = parts
    blocks = context.checkpoint.geometry.architecture.blocks
    return rest == ["weight"] and any(linear == w.name for block in blocks for w in block.writers)
