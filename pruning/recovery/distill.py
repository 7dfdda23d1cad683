"""Distillation into all weights of the body: the slim base learns the dense base's distributions.

Hinton et al., "Distilling the Knowledge in a Neural Network", 2015,
https://arxiv.org/abs/1503.02531; for pruned LLMs Muralidharan et al., "Compact Language Models via
Pruning and Knowledge Distillation", NeurIPS 2024, https://arxiv.org/abs/2407.14679 (Minitron).
Embedding and output head stay as they are, so that only what was cut is retrained.
"""

from pruning.evaluation import load
from pruning.methods.recovery import DistillParams
from pruning.progress import Progress
from pruning.registry import RecoveryContext
from pruning.training.fit import choose, fit
from pruning.training.losses import distillation
from pruning.weights.rewriting import rewrite
from pruning.weights.tensors import EMBEDDING, HEAD


def recover(context: RecoveryContext, params: DistillParams, progress: Progress) -> None:
    """Needs memory for both bases in float32, and four times the body of the slim one."""
    student, teacher = load(context.source), load(context.spec.base)
    choose(student, lambda name: name not in (EMBEDDING, HEAD))
    loss = distillation(student, teacher, params.temperature)
    fit(student, loss, params, context, progress)
    rewrite(context.source, context.destination, student.state_dict().__getitem__)
