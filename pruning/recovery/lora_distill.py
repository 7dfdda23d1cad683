"""Distillation into LoRA factors, merged into the weights: the teacher of `distill`, less memory.

Hinton et al., "Distilling the Knowledge in a Neural Network", 2015,
https://arxiv.org/abs/1503.02531; the factors are those of Hu et al., "LoRA: Low-Rank Adaptation of
Large Language Models", ICLR 2022, https://arxiv.org/abs/2106.09685.
"""

from pruning.evaluation import load
from pruning.methods.recovery import LoraDistillParams
from pruning.progress import Progress
from pruning.registry import RecoveryContext
from pruning.training.fit import fit
from pruning.training.lora import merged, with_lora
from pruning.training.losses import distillation
from pruning.weights.rewriting import rewrite


def recover(context: RecoveryContext, params: LoraDistillParams, progress: Progress) -> None:
    """Needs memory for both bases in float32; the factors are small."""
    student = with_lora(load(context.source), params, context.spec.recipe.seed)
    loss = distillation(student, load(context.spec.base), params.temperature)
    fit(student, loss, params, context, progress)
    rewrite(context.source, context.destination, merged(student).__getitem__)
