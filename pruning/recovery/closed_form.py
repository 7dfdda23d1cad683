"""Closed form: the kept inputs of every o_proj and down_proj take over from those that left.

Hu et al., "FASP: Fast and Accurate Structured Pruning of Large Language Models", arXiv 2025,
https://arxiv.org/abs/2501.09412: least squares on the Gram of the inputs, one solve per reader.
Layer after layer, each on what the new layers before it and the new attention beside it make of
the calibration text; the goal is what the dense weights would make of those same inputs.  Where
the slim base has a bias, weights and bias are refit together: of FLAP's bias (An et al., AAAI
2024, https://arxiv.org/abs/2312.11983) this is the best one.
"""

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pruning.methods.recovery import ClosedFormParams
from pruning.progress import Progress
from pruning.registry import RecoveryContext
from pruning.statistics.walk import Blocks, Passage, Reader, counted, refit_reader
from pruning.units import KINDS, READERS, selections
from pruning.weights.rewriting import WEIGHTS, rewrite


def recover(context: RecoveryContext, params: ClosedFormParams, progress: Progress) -> None:
    """Refit the readers of the slim base, from the dense weights; a kill costs one layer's work."""
    num_layers = len(context.plan.layers)
    tokens_ST = counted(context.ids_ST, context.spec.recipe.sink_tokens)
    passage = Passage(context.checkpoint, context.ids_ST, tokens_ST, context.state)
    blocks = Blocks(context.checkpoint)
    while passage.layer < num_layers:
        progress(passage.layer / num_layers, f"refitting layer {passage.layer + 1} of {num_layers}")
        _refit_layer(context, params, blocks, passage)
        passage.finish_layer()
    rewrite(context.source, context.destination, lambda name: _tensor(context, name))


def _refit_layer(
    context: RecoveryContext, params: ClosedFormParams, blocks: Blocks, passage: Passage
) -> None:
    """Take `passage` through one layer, and keep the layer's new readers on disk."""
    layer, found = passage.layer, dict[str, Tensor]()
    tensors = context.checkpoint.layer(layer)
    blocks.fill(layer, tensors)
    chosen = selections(context.checkpoint.geometry, layer, context.plan.layers[layer])
    for kind in KINDS:
        linear = READERS[kind]
        if linear not in chosen:
            passage.skip(kind)
            continue
        gram = passage.gram(blocks, kind)
        reader = Reader.dense(tensors, kind, blocks.device)
        kept_K = torch.tensor(chosen[linear].indices, device=blocks.device)
        if len(kept_K) < reader.num_inputs:
            gains_bias = context.plan.bias_compensation
            reader = refit_reader(reader, gram, kept_K, params.damping, gains_bias)
        passage.read(blocks, kind, reader)
        found |= reader.named(kind)
    save_file(found, context.state / f"layer-{layer}.safetensors")


def _tensor(context: RecoveryContext, name: str) -> Tensor:
    """A tensor of the repaired base, refit if there is such a one, by its name there."""
    parts = name.split(".")
    if parts[1] == "layers":
        layer, key = context.plan.kept_layers[int(parts[2])], ".".join(parts[3:])
        with safe_open(context.state / f"layer-{layer}.safetensors", framework="pt") as readers:
            if key in readers.keys():
                refit: Tensor = readers.get_tensor(key)
                return refit
    with safe_open(context.source / WEIGHTS, framework="pt") as cut:
        kept: Tensor = cut.get_tensor(name)
        return kept
