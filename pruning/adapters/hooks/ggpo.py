"""Noise on the weight in training, as large as its rows and their gradients: flatter minima.

Chang et al., "LoRA-GGPO: Mitigating Double Descent in LoRA Fine-Tuning via Gradient-Guided
Perturbation Optimization", arXiv 2025, https://arxiv.org/abs/2502.14538, section 3: each row of
the weight gets noise of deviation (σ ‖W_i + s B_i A‖ + β ‖g_i‖²) / √outputs, g the gradient
of the last step, s (B ∂A + ∂B A).  Such noise on W moves an output by deviation · ‖x‖ · n with n
normal, and so it is added there: each token has noise of its own, of the same distribution.
"""

# Shape suffixes:  B = rows,  T = tokens,  R = atoms,  I = inputs and  O = outputs of the linear.

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pruning.adapters.merging import seed_of
from pruning.adapters.train.tuned import Around, Setting, Tuned, trained_sides
from pruning.methods.training import GgpoParams


class _Noise:
    """A forward hook on one linear, silent outside of steps."""

    def __init__(
        self, layer: Any, factors: tuple[Tensor, Tensor], params: GgpoParams, scale: float
    ):
        self._layer, self._params, self._scale = layer, params, scale
        self._a_RI, self._b_OR = factors
        self.gradient_O = self._b_OR.detach().new_zeros(len(self._b_OR))  # ‖g_i‖ of the last step
        self.deviation_O: Tensor | None = None
        self.generator = torch.Generator(device=self._b_OR.device)
        layer.register_forward_hook(self)

    def __call__(self, module: Any, inputs: tuple[Tensor, ...], output_BTO: Tensor) -> Tensor:
        if self.deviation_O is None:
            return output_BTO
        length_BT1 = inputs[0].detach().norm(dim=-1, keepdim=True)
        noise_BTO = torch.randn(
            output_BTO.shape, generator=self.generator, device=output_BTO.device
        )
        perturbed_BTO: Tensor = output_BTO + self.deviation_O * length_BT1 * noise_BTO
        return perturbed_BTO

    @torch.no_grad()
    def begin(self, seed: int) -> None:
        """Decide how much noise a step has."""
        weight_OI = self._layer.base_layer.weight + self._scale * self._b_OR @ self._a_RI
        size_O = self._params.sigma * weight_OI.norm(dim=1)
        size_O = size_O + self._params.beta * self.gradient_O.square()
        self.deviation_O = size_O / len(size_O) ** 0.5
        self.generator.manual_seed(seed)

    @torch.no_grad()
    def end(self) -> None:
        """Be silent, and remember the gradient."""
        self.deviation_O = None
        gradient_a, gradient_b = self._a_RI.grad, self._b_OR.grad
        assert gradient_a is not None
        assert gradient_b is not None
        whole_OI = self._scale * (self._b_OR @ gradient_a + gradient_b @ self._a_RI)
        self.gradient_O.copy_(whole_OI.norm(dim=1))


class Perturbing(Around):
    """Lets all linears be noisy in each step."""

    def __init__(self, noises: Mapping[Any, _Noise], seed: int):
        self._noises, self._seed = noises, seed

    def before(self, step: int) -> None:
        for key, noise in self._noises.items():
            noise.begin(seed_of(self._seed, "noise", step, key))

    def after(self, rate: float) -> None:
        for noise in self._noises.values():
            noise.end()

    @property
    def state(self) -> Mapping[str, Tensor]:
        return {f"{key[0]}.{key[1]}": noise.gradient_O for key, noise in self._noises.items()}


def attach(tuned: Tuned, params: GgpoParams, setting: Setting) -> Around:
    """For forms that train both factors; InvalidInput otherwise."""
    noises = {
        key: _Noise(tuned.layers[key], factors, params, tuned.starts.scale)
        for key, factors in trained_sides(tuned, "ggpo").items()
    }
    return Perturbing(noises, setting.seed)
