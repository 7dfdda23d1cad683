"""Alignment: all weights but the output head go on reading text, so that an adapter fits again.

The second step of LoRAM: Zhang et al., "Train Small, Infer Large: Memory-Efficient LoRA Training
for Large Language Models", ICLR 2025, https://arxiv.org/abs/2502.13533.  The aligned slim base is
there to train adapters on; they are lifted to the dense one, which nothing has changed.  Where the
embedding is the output head as well, it stays.
"""

from pruning.evaluation import load
from pruning.methods.recovery import TrainingParams
from pruning.progress import Progress
from pruning.registry import RecoveryContext
from pruning.training.fit import choose, fit
from pruning.training.losses import next_token
from pruning.weights.rewriting import rewrite
from pruning.weights.tensors import EMBEDDING, HEAD


def recover(context: RecoveryContext, params: TrainingParams, progress: Progress) -> None:
    """Needs memory for the slim base in float32, its gradients and two moments of each."""
    model = load(context.source)
    frozen = EMBEDDING if model.config.tie_word_embeddings else HEAD
    choose(model, lambda name: name != frozen)
    fit(model, next_token(model), params, context, progress)
    rewrite(context.source, context.destination, model.state_dict().__getitem__)
