"""LoRA on every linear, trained on text and merged into the weights, as LLM-Pruner recovers.

Ma et al., "LLM-Pruner: On the Structural Pruning of Large Language Models", NeurIPS 2023,
https://arxiv.org/abs/2305.11627, section 3.3.
"""

from pruning.evaluation import load
from pruning.methods.recovery import LoraParams
from pruning.progress import Progress
from pruning.registry import RecoveryContext
from pruning.training.fit import fit
from pruning.training.lora import merged, with_lora
from pruning.training.losses import next_token
from pruning.weights.rewriting import rewrite


def recover(context: RecoveryContext, params: LoraParams, progress: Progress) -> None:
    """Needs memory for the slim base in float32; the factors are small."""
    model = with_lora(load(context.source), params, context.spec.recipe.seed)
    fit(model, next_token(model), params, context, progress)
    rewrite(context.source, context.destination, merged(model).__getitem__)
