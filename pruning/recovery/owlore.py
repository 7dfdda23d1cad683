"""OwLore: as LISA, but layers with many outliers more often, and their gradients of low rank.

Li et al., "OwLore: Outlier-weighed Layerwise Sampled Low-Rank Projection for Memory-Efficient LLM
Fine-tuning", arXiv 2024, https://arxiv.org/abs/2405.18380, equations 2 and 3: a layer is drawn in
proportion to the part of the |W_ij| · ‖X_j‖ that exceeds `outlier` times their mean.  Its linears
train within the leading singular vectors of the gradient on the calibration text (GaLore, Zhao et
al., ICML 2024, https://arxiv.org/abs/2403.03507): Adam on P in W + scale · U P is Adam on the
projected gradient.
"""

# Shape suffixes:  S = sequences,  T = tokens,  O = outputs,  I = inputs,  R = rank, K = max(O, I).

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pruning.evaluation import load
from pruning.methods.recovery import OwloreParams
from pruning.progress import Progress
from pruning.registry import RecoveryContext
from pruning.training.data import MICRO_TOKENS
from pruning.training.fit import fit
from pruning.training.losses import Loss, next_token
from pruning.training.sampled import Sampling
from pruning.training.trainer import Steps
from pruning.weights.rewriting import rewrite


def recover(context: RecoveryContext, params: OwloreParams, progress: Progress) -> None:
    """Needs memory for the slim base in float32, twice, and for one layer's gradients."""
    model = load(context.source)
    count = min(params.batch, MICRO_TOKENS // context.ids_ST.shape[1])  # no more than a step has
    ids_ST = context.ids_ST[: max(1, count)]
    ratios = outlier_ratios(model, ids_ST, params.outlier)
    chances = ratios if any(ratios) else [1.0] * len(ratios)
    projected = [linear for layer in model.model.layers for linear in _linears(layer)]
    for linear in projected:
        parametrize.register_parametrization(linear, "weight", Projected(linear.weight, params))
    loss = next_token(model)
    seed, every = context.spec.recipe.seed, params.every
    sampling = Sampling(model, params, chances, seed)

    def before(step: int) -> None:
        sampling.before(step)
        drawn = [model.model.layers[index] for index in sorted(sampling.drawn(step))]
        if step % every == 0:
            for linear in projected:
                _parametrization(linear).fold(_original(linear).data)
            turn(drawn, loss, ids_ST)
        for linear in (linear for layer in drawn for linear in _linears(layer)):
            _parametrization(linear).train_steps_alone(linear)

    fit(model, loss, params, context, progress, Steps(before=before))
    for linear in projected:
        parametrize.remove_parametrizations(linear, "weight")
    rewrite(context.source, context.destination, model.state_dict().__getitem__)


class Projected(nn.Module):
    """W + scale · U P, or W + scale · P Uᵀ where there are fewer inputs than outputs."""

    def __init__(self, weight_OI: Tensor, params: OwloreParams):
        super().__init__()
        outputs, inputs = weight_OI.shape
        self.left, self.scale = outputs <= inputs, params.scale
        smaller, larger = sorted((outputs, inputs))
        rank = min(params.rank, smaller)
        self.basis = nn.Parameter(weight_OI.new_zeros(smaller, rank), requires_grad=False)
        self.steps_RK = nn.Parameter(weight_OI.new_zeros(rank, larger))

    def forward(self, weight_OI: Tensor) -> Tensor:
        if not (self.steps_RK.requires_grad or self.steps_RK.any()):
            return weight_OI  # a second copy of every frozen weight would cost what freezing saves
        moved: Tensor = self.scale * self.basis @ self.steps_RK
        return weight_OI + (moved if self.left else moved.T)

    @torch.no_grad()
    def fold(self, weight_OI: Tensor) -> None:
        """Take what was learnt into the weight: a turn is over."""
        weight_OI.copy_(self(weight_OI))
        self.steps_RK.zero_()

    @torch.no_grad()
    def begin(self, gradient_OI: Tensor) -> None:
        """Take the gradient's subspace for what follows."""
        u, _, v = torch.linalg.svd(gradient_OI, full_matrices=False)
        rank = self.basis.shape[1]
        self.basis.copy_(u[:, :rank] if self.left else v[:rank].T)

    def train_steps_alone(self, linear: nn.Module) -> None:
        """Freeze the weight and the subspace."""
        _original(linear).requires_grad_(False)
        self.basis.requires_grad_(False)


def turn(layers: Sequence[nn.Module], loss: Loss, ids_ST: Tensor) -> None:
    """Begin the turn of some layers: their linears get new subspaces."""
    linears = [linear for layer in layers for linear in _linears(layer)]
    originals = [_original(linear) for linear in linears]
    gradients = torch.autograd.grad(loss(ids_ST), originals)
    for linear, gradient_OI in zip(linears, gradients, strict=True):
        _parametrization(linear).begin(gradient_OI)


@torch.no_grad()
def outlier_ratios(model: Any, ids_ST: Tensor, outlier: float) -> list[float]:
    """Of each layer, the part of |W_ij| · ‖X_j‖ above `outlier` times their mean in a linear."""
    squares: dict[nn.Module, Tensor] = {}

    def look(linear: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        squares[linear] = inputs[0].flatten(0, -2).square().sum(dim=0)

    layers = [_linears(layer) for layer in model.model.layers]
    handles = [one.register_forward_hook(look) for linears in layers for one in linears]
    model(input_ids=ids_ST.to(model.device), use_cache=False)
    for handle in handles:
        handle.remove()

    def ratio(linear: nn.Linear) -> float:
        size_OI = linear.weight.abs() * squares[linear].sqrt()
        return float((size_OI > outlier * size_OI.mean()).float().mean())

    return [sum(map(ratio, linears)) / max(1, len(linears)) for linears in layers]


def _linears(layer: nn.Module) -> list[nn.Linear]:
    return [module for module in layer.modules() if isinstance(module, nn.Linear)]


def _parametrization(linear: nn.Module) -> Projected:
    found: Any = linear.parametrizations
    projected: Projected = found["weight"][0]
    return projected


def _original(linear: nn.Module) -> nn.Parameter:
    return linear.get_parameter("parametrizations.weight.original")
