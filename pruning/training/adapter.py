"""Trains a plain LoRA on a base, dense or slim: what LoRAM lifts to the dense base afterwards.

Zhang et al., "Train Small, Infer Large: Memory-Efficient LoRA Training for Large Language Models",
ICLR 2025, https://arxiv.org/abs/2502.13533.
"""

from pathlib import Path

from pruning import evaluation
from pruning.adapters.algebra import Bag, adapter_of
from pruning.adapters.atoms import Adapter, Key, key_of
from pruning.methods.recovery import LoraParams
from pruning.progress import Progress
from pruning.training.data import Split
from pruning.training.lora import with_lora
from pruning.training.losses import next_token
from pruning.training.trainer import Outcome, train


def train_adapter(
    base: Path, data: Split, params: LoraParams, seed: int, state: Path, progress: Progress
) -> tuple[Adapter, Outcome]:
    """A LoRA on every linear that the base has, its scale folded into b; float32.

    The course is saved in `state` and taken up from there.  Needs memory for the base in float32,
    and gradients and two moments for the factors alone.  Raises InvalidInput as `train`.
    """
    model = with_lora(evaluation.load(base), params, seed)
    factors = {name: p for name, p in model.named_parameters() if p.requires_grad}
    outcome = train(factors, next_token(model), data, params, seed, state, progress)
    sides: dict[tuple[Key, str], str] = {
        key_of(name.replace(".default", ""), "adapter"): name for name in factors
    }
    scale = params.alpha / params.rank
    bags = {
        key: Bag(
            factors[sides[key, "A"]].detach().cpu(), scale * factors[sides[key, "B"]].detach().cpu()
        )
        for key in sorted({key for key, _ in sides})
    }
    return adapter_of(bags), outcome
