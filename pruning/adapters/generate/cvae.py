"""A conditional VAE over the layers of adapters: q(z | x, c, layer) and p(x | z, c, layer).

Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014, https://arxiv.org/abs/1312.6114;
Sohn et al., "Learning Structured Output Representation using Deep Conditional Generative Models",
NeurIPS 2015; on adapters: Shao et al., "In-Context Meta LoRA Generation", IJCAI 2025,
https://arxiv.org/abs/2501.17635.  They run convolutions over a whole flattened adapter; here one
network with an embedding of the layer makes all layers, and x are coefficients of the layers'
principal directions, so that the network does not grow with the base.
"""

# Shape suffixes:  B = layers of a batch,  H = components,  Z = latent,  h = hidden size.

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.nn.utils import clip_grad_norm_

from pruning.adapters.generate.recipes import Network
from pruning.adapters.merging import seed_of
from pruning.progress import Progress
from pruning.training.course import Course
from pruning.training.trainer import rate_factor

CONDITION, LAYER = 32, 16  # numbers that a condition and a layer become
SAVES, WARMUP, CLIP = 10, 0.05, 1.0


class ConditionalVae(nn.Module):
    """`conditions` are kinds of task vectors, each with a way in of its own."""

    def __init__(
        self,
        size: Network,
        components: int,
        hidden_size: int,
        num_layers: int,
        conditions: tuple[str, ...],
    ):
        super().__init__()
        self.latent = size.latent
        self.conditions = nn.ModuleDict({n: nn.Linear(hidden_size, CONDITION) for n in conditions})
        self.layers = nn.Embedding(num_layers, LAYER)
        context = CONDITION + LAYER
        self.encoder = _perceptron(components + context, size.width, 2 * size.latent)
        self.decoder = _perceptron(size.latent + context, size.width, components)

    def encode(self, x_BH: Tensor, context_BC: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z | x, c, layer); (B, Z) each."""
        mean_BZ, log_variance_BZ = self.encoder(torch.cat([x_BH, context_BC], dim=1)).chunk(2, 1)
        return mean_BZ, log_variance_BZ

    def decode(self, z_BZ: Tensor, context_BC: Tensor) -> Tensor:
        """The mean of p(x | z, c, layer); (B, H)."""
        found_BH: Tensor = self.decoder(torch.cat([z_BZ, context_BC], dim=1))
        return found_BH

    def context(self, kind: str, vectors_Bh: Tensor, layers_B: Tensor) -> Tensor:
        """A condition and a layer, as both halves see them."""
        return torch.cat([self.conditions[kind](vectors_Bh), self.layers(layers_B)], dim=1)


def _perceptron(inputs: int, width: int, outputs: int) -> nn.Sequential:
    hidden = nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
    return nn.Sequential(*hidden, nn.Linear(width, outputs))


def divergence(mean_BZ: Tensor, log_variance_BZ: Tensor) -> Tensor:
    """KL(q ‖ N(0, 1)), the mean over the batch, in nats."""
    each_BZ = log_variance_BZ.exp() + mean_BZ.square() - 1 - log_variance_BZ
    return each_BZ.sum(dim=1).mean() / 2


@dataclass(frozen=True)
class Lesson:
    """What is learnt: coefficients of every layer of every checkpoint, and conditions."""

    coefficients_XH: Tensor
    layers_X: Tensor
    tasks_X: Tensor
    sets: Mapping[str, Tensor]  # by kind of condition, (T, D, h)

    def draw(self, count: int, kind: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Layers to learn from, and the condition that each comes with; (B,), (B, h)."""
        sets_TDh = self.sets[kind]
        chosen_B = torch.randint(len(self.tasks_X), (count,), generator=generator)
        which_B = torch.randint(sets_TDh.shape[1], (count,), generator=generator)
        return chosen_B, sets_TDh[self.tasks_X[chosen_B], which_B]


def train_vae(
    vae: ConditionalVae, lesson: Lesson, size: Network, seed: int, state: Path, progress: Progress
) -> float:
    """Train in place; the divergence over all layers at the end, in nats.

    Killed and run again with the same `state`, the same weights.
    """
    parameters = dict(vae.named_parameters())
    course = Course.resume(state, parameters, 0.0) or Course.begin(parameters, 0.0, float("inf"))
    kinds, every = sorted(lesson.sets), max(1, size.steps // SAVES)
    while course.step < size.steps:
        generator = torch.Generator().manual_seed(seed_of(seed, "step", course.step))
        kind = kinds[course.step % len(kinds)]
        loss = _step(vae, course, lesson, kind, size, generator)
        course.step += 1
        if course.step % every == 0:
            course.save(state)
        progress(course.step / size.steps, f"step {course.step} of {size.steps}: loss {loss:.4f}")
    return _final_divergence(vae, lesson, kinds[0])


def _step(
    vae: ConditionalVae,
    course: Course,
    lesson: Lesson,
    kind: str,
    size: Network,
    generator: torch.Generator,
) -> float:
    chosen_B, vectors_Bh = lesson.draw(size.batch, kind, generator)
    x_BH = lesson.coefficients_XH[chosen_B]
    context_BC = vae.context(kind, vectors_Bh, lesson.layers_X[chosen_B])
    mean_BZ, log_variance_BZ = vae.encode(x_BH, context_BC)
    noise_BZ = torch.randn(mean_BZ.shape, generator=generator)
    found_BH = vae.decode(mean_BZ + noise_BZ * (log_variance_BZ / 2).exp(), context_BC)
    loss = mse_loss(found_BH, x_BH) + size.kl_weight * divergence(mean_BZ, log_variance_BZ)
    for parameter in course.parameters.values():  # a way in that this step does not take: zeros,
        parameter.grad = torch.zeros_like(parameter)  # for which the optimizer has moments, too
    torch.autograd.backward(loss)
    clip_grad_norm_(course.parameters.values(), CLIP)
    for group in course.optimizer.param_groups:
        group["lr"] = size.learning_rate * rate_factor(course.step, size.steps, WARMUP)
    course.optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def _final_divergence(vae: ConditionalVae, lesson: Lesson, kind: str) -> float:
    vectors_Xh = lesson.sets[kind].mean(dim=1)[lesson.tasks_X]
    context_XC = vae.context(kind, vectors_Xh, lesson.layers_X)
    return float(divergence(*vae.encode(lesson.coefficients_XH, context_XC)))
