"""LISA: embedding, head and a few layers at a time train fully, in the memory of LoRA.

Pan et al., "LISA: Layerwise Importance Sampling for Memory-Efficient Large Language Model
Fine-Tuning", NeurIPS 2024, https://arxiv.org/abs/2403.17919, algorithm 1: every so many steps some
layers are drawn, all with the same chance, and the others are frozen; only those that train have
gradients and moments.
"""

from pruning.evaluation import load
from pruning.methods.recovery import LisaParams
from pruning.progress import Progress
from pruning.registry import RecoveryContext
from pruning.training.fit import fit
from pruning.training.losses import next_token
from pruning.training.sampled import Sampling
from pruning.training.trainer import Steps
from pruning.weights.rewriting import rewrite


def recover(context: RecoveryContext, params: LisaParams, progress: Progress) -> None:
    """Needs memory for the slim base in float32, twice (the best so far), and little more."""
    model = load(context.source)
    chances = [1.0] * len(model.model.layers)
    sampling = Sampling(model, params, chances, context.spec.recipe.seed)
    fit(model, next_token(model), params, context, progress, Steps(before=sampling.before))
    rewrite(context.source, context.destination, model.state_dict().__getitem__)
