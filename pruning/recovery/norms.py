"""Norms and biases alone, less than a hundredth of the parameters, retrained on text (PERP).

Zimmer et al., "PERP: Rethinking the Prune-Retrain Paradigm in the Era of LLMs", arXiv 2023,
https://arxiv.org/abs/2312.15230.  Its LoRA behind a mask is `masked_lora`; where units leave for
good and no weight is zero, `lora` is the same thing.
"""

from pruning.evaluation import load
from pruning.methods.recovery import TrainingParams
from pruning.progress import Progress
from pruning.registry import RecoveryContext
from pruning.training.fit import choose, fit
from pruning.training.losses import next_token
from pruning.weights.rewriting import rewrite


def recover(context: RecoveryContext, params: TrainingParams, progress: Progress) -> None:
    """Needs memory for the slim base in float32, and little more."""
    model = load(context.source)
    choose(model, is_norm_or_bias)
    fit(model, next_token(model), params, context, progress)
    rewrite(context.source, context.destination, model.state_dict().__getitem__)


def is_norm_or_bias(name: str) -> bool:
    """Whether a parameter is the weight of a norm, or a bias."""
    return name.endswith(("norm.weight", ".bias"))
