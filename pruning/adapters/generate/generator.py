"""A trained generator: from families to a file, and from a condition to an adapter.

Shao et al., "In-Context Meta LoRA Generation", IJCAI 2025, https://arxiv.org/abs/2501.17635.
Unlike the released code, what undoes the normalisation is pooled over all tasks and comes with the
generator, so that nothing of a task's own adapter is needed to make one for it.
"""

# Shape suffixes:  S = checkpoints,  L = layers,  N = numbers of a layer,  H = components,
# Z = latent,  h = hidden size,  T = tasks.

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pruning.adapters.algebra import Bag, Bags
from pruning.adapters.atoms import Key
from pruning.adapters.generate.conditions import Conditions
from pruning.adapters.generate.cvae import ConditionalVae, Lesson, train_vae
from pruning.adapters.generate.recipes import Network
from pruning.adapters.generate.vectors import Basis, Layout, Normalisation, rms, stacked
from pruning.progress import Progress

PAPER = "https://arxiv.org/abs/2501.17635"
FILE = "generator.safetensors"
_UNUSED = "encoder."  # in generating: it stays out of the file


@dataclass(frozen=True)
class Generator:
    """Makes adapters of one layout for one base."""

    tasks: tuple[str, ...]
    conditions: Mapping[str, Conditions]  # by kind, "examples" and maybe "description"
    normalisation: Normalisation
    basis: Basis
    size: float  # what coefficients are multiplied by: their root mean square
    vae: ConditionalVae
    network: Network

    @property
    def layout(self) -> Layout:
        return self.normalisation.layout

    @property
    def parameters(self) -> int:
        """Of the network, without what only training needs."""
        named = self.vae.named_parameters()
        return sum(p.numel() for name, p in named if not name.startswith(_UNUSED))

    @torch.no_grad()
    def make(self, kind: str, vector_h: Tensor, z_LZ: Tensor) -> dict[Key, Bag]:
        """The adapter of a condition and, for each layer, a latent vector."""
        layers_L = torch.arange(self.layout.num_layers)
        context_LC = self.vae.context(kind, vector_h.expand(len(layers_L), -1), layers_L)
        coefficients_LH = self.size * self.vae.decode(z_LZ, context_LC)
        return self.layout.bags(self.normalisation.undo(coefficients_LH @ self.basis.rows_HN))

    def latents(self, samples: int, seed: int) -> Tensor:
        """What samples are made of: zero, the mode, then draws from N(0, 1); (samples, L, Z)."""
        shape = samples - 1, self.layout.num_layers, self.network.latent
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return torch.cat([torch.zeros(1, *shape[1:]), drawn])

    def save(self, path: Path) -> None:
        """Write one file; small numbers in float16, directions in int8."""
        tensors: dict[str, Tensor] = {
            "mean": self.normalisation.mean_LN.half(),
            "deviation": self.normalisation.deviation_P,
            "basis": self.basis.steps_HN,
            "basis.scale": self.basis.scale_H,
        }
        for name, weight in self.vae.state_dict().items():
            if not name.startswith(_UNUSED):
                tensors[f"network.{name}"] = weight.half()
        for kind, known in self.conditions.items():
            tensors[f"conditions.{kind}.mean"] = known.mean_h
            tensors[f"conditions.{kind}.deviation"] = known.deviation_h
            tensors[f"conditions.{kind}.vectors"] = known.vectors_Th.half()
        told = {
            "tasks": self.tasks,
            "radius": {kind: known.radius for kind, known in self.conditions.items()},
            "rank": self.layout.rank,
            "shapes": {f"{i}.{linear}": s for (i, linear), s in self.layout.shapes.items()},
            "size": self.size,
            "network": self.network.model_dump(),
        }
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, path, {"generator": json.dumps(told, sort_keys=True)})

    @classmethod
    def load(cls, path: Path) -> "Generator":
        """Read what `save` wrote, of an artifact that was verified."""
        with safe_open(path, framework="pt") as file:
            told: dict[str, Any] = json.loads(file.metadata()["generator"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        shapes = {_key(name): (shape[0], shape[1]) for name, shape in told["shapes"].items()}
        layout, network = Layout(told["rank"], shapes), Network.model_validate(told["network"])
        conditions = {
            kind: Conditions(
                tensors[f"conditions.{kind}.mean"],
                tensors[f"conditions.{kind}.deviation"],
                tensors[f"conditions.{kind}.vectors"].float(),
                radius,
            )
            for kind, radius in told["radius"].items()
        }
        basis = Basis(tensors["basis"], tensors["basis.scale"])
        vae = _new_vae(network, layout, basis, conditions)
        weights = {
            name.removeprefix("network."): tensor.float()
            for name, tensor in tensors.items()
            if name.startswith("network.")
        }
        missing, unexpected = vae.load_state_dict(weights, strict=False)
        assert not unexpected
        assert all(name.startswith(_UNUSED) for name in missing)
        return cls(
            tuple(told["tasks"]),
            conditions,
            Normalisation(layout, tensors["mean"].float(), tensors["deviation"]),
            basis,
            told["size"],
            vae.eval(),
            network,
        )


@dataclass(frozen=True)
class Trained:
    """A generator, and what its training tells of it."""

    generator: Generator
    explained: float  # of the variance of the checkpoints, by the basis
    kl: float  # of a layer, in nats


def train_generator(
    families: Mapping[str, Sequence[Bags]],
    states: Mapping[str, Sequence[Tensor]],
    network: Network,
    seed: int,
    state: Path,
    progress: Progress,
) -> Trained:
    """Learn families by task, and the states that are the conditions of each task, by kind.

    Holds all checkpoints in memory, in float32, a few times over.  Killed and run again, the same.
    """
    tasks = tuple(sorted(families))
    checkpoints = [bags for task in tasks for bags in families[task]]
    layout = Layout.of(checkpoints[0])
    vectors_SLN = stacked(layout, checkpoints)
    normalisation = Normalisation.pooled(layout, vectors_SLN)
    normal_XN = normalisation.apply(vectors_SLN).flatten(0, 1)
    apart = (len(tasks) - 1) * layout.num_layers  # as many as the tasks' means can span
    basis = Basis.of(normal_XN, network.components or max(1, apart))
    coefficients_XH = basis.coefficients(normal_XN)
    size = rms(coefficients_XH)
    learnt = {kind: Conditions.learn(own, seed) for kind, own in states.items()}
    conditions = {kind: known for kind, (known, _) in learnt.items()}
    counts = torch.tensor([len(families[task]) for task in tasks])
    lesson = Lesson(
        coefficients_XH / size,
        torch.arange(layout.num_layers).repeat(len(checkpoints)),
        torch.arange(len(tasks)).repeat_interleave(counts * layout.num_layers),
        {kind: sets_TDh for kind, (_, sets_TDh) in learnt.items()},
    )
    torch.manual_seed(seed)
    vae = _new_vae(network, layout, basis, conditions)
    kl = train_vae(vae, lesson, network, seed, state, progress)
    generator = Generator(
        tasks, conditions, normalisation, basis, size, vae.requires_grad_(False).eval(), network
    )
    return Trained(generator, basis.explained(normal_XN), kl)


def _new_vae(
    network: Network, layout: Layout, basis: Basis, conditions: Mapping[str, Conditions]
) -> ConditionalVae:
    hidden_size = len(next(iter(conditions.values())).mean_h)
    kinds = tuple(sorted(conditions))
    return ConditionalVae(network, len(basis.scale_H), hidden_size, layout.num_layers, kinds)


def _key(name: str) -> Key:
    layer, _, linear = name.partition(".")
    return int(layer), linear
