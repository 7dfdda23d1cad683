"""A gate for each atom, pulled towards zero; an atom whose gate is closed is not served.

Ding et al., "Sparse Low-rank Adaptation of Pre-trained Language Models", EMNLP 2023,
https://arxiv.org/abs/2311.11696, equations 4 to 6: B · diag(g) · A, and after each step of the
optimizer g ← sign(g) · max(|g| - λ, 0).  Gates begin normally distributed, as theirs: were they all
alike, all would close together or none, and what stays would be as small as what goes.  λ is told
by how far a gate that nothing holds goes down in the whole training, so that it means the same
whatever the number of steps is; 0.7 closes about half of them.
"""

# Shape suffixes:  R = atoms,  O = outputs of the linear.

import torch
from torch import Tensor, nn
from torch.nn.functional import softshrink
from torch.nn.utils import parametrize

from pruning.adapters.merging import seed_of
from pruning.adapters.train.tuned import Around, Setting, Tuned, side_b
from pruning.methods.training import GatedParams


class Gate(nn.Module):
    """B · diag(g) in the place of B."""

    def __init__(self, gate_R: Tensor):
        super().__init__()
        self.gate_R = nn.Parameter(gate_R)

    def forward(self, b_OR: Tensor) -> Tensor:
        return b_OR * self.gate_R


class Shrinking(Around):
    """Pulls gates towards zero after each step."""

    keeps_last = True  # earlier weights have more gates open

    def __init__(self, gates: list[Gate], threshold: float):
        self._gates, self._threshold = gates, threshold

    def after(self, rate: float) -> None:
        for gate in self._gates:
            gate.gate_R.data = softshrink(gate.gate_R.data, self._threshold)


def attach(tuned: Tuned, params: GatedParams, setting: Setting) -> Around:
    """Factors and gates are trained."""
    gates = []
    for key, layer in tuned.layers.items():
        rank, device = side_b(layer).weight.shape[1], side_b(layer).weight.device
        generator = torch.Generator().manual_seed(seed_of(setting.seed, "gates", key))
        gates.append(Gate(torch.randn(rank, generator=generator).to(device)))
        parametrize.register_parametrization(side_b(layer), "weight", gates[-1])
    return Shrinking(gates, params.shrink / setting.num_steps)
