"""Layers that validation asks for: the others get no adapter.

Wei et al., "Flexora: Flexible Low-Rank Adaptation for Large Language Models", ACL 2025,
https://arxiv.org/abs/2408.10774: each layer's ΔW is multiplied by a number, all of them layers ·
softmax(α); factors learn from some rows, and after each of their steps α goes down the gradient of
the loss on others.  The paper differentiates through the steps of the factors; here the gradient is
that at the factors as they are (first order).  The layers of the largest numbers are kept, and
their factors begin anew.
"""

# Shape suffixes:  L = layers,  O = outputs,  R = atoms.

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pruning.adapters.atoms import Key
from pruning.adapters.init import lora
from pruning.adapters.train.tuned import Batch, Site, Tuned, count, side_b, summed_loss
from pruning.errors import InvalidInput
from pruning.methods.entry import Params
from pruning.methods.training import FlexoraParams


class Importance(nn.Module):
    """layers · softmax(α), all one at first; (L,)."""

    def __init__(self, num_layers: int):
        super().__init__()
        self.alpha_L = nn.Parameter(torch.zeros(num_layers))

    def forward(self) -> Tensor:
        return len(self.alpha_L) * self.alpha_L.softmax(dim=0)


class _Weighted(nn.Module):
    """B times the number of its layer."""

    def __init__(self, importance: Importance, place: int):
        super().__init__()
        self._importance, self._place = (importance,), place  # no second owner of α

    def forward(self, b_OR: Tensor) -> Tensor:
        (importance,) = self._importance
        weighted_OR: Tensor = b_OR * importance()[self._place]
        return weighted_OR


def share(site: Site, params: FlexoraParams) -> dict[Key, int]:
    """Nothing for layers that are not kept; the search takes two passes over a batch a step."""
    layers = sorted({layer for layer, _ in site.ranks})
    alphas = search(site, layers, params)
    most = max(1, math.floor(params.keep * len(layers)))
    kept = sorted(layers, key=lambda layer: alphas[layer], reverse=True)[:most]
    return {key: rank for key, rank in site.ranks.items() if key[0] in kept}


def search(site: Site, layers: list[int], params: FlexoraParams) -> dict[int, float]:
    """α of each layer after so many steps; the base is as it was."""
    learnt, judged = site.batches[::2], site.batches[1::2]
    if not judged:
        raise InvalidInput("ranks.params.rows", "flexora learns and judges; give it more rows")
    tuned = Tuned.of(site.model, lora.begin(site, Params()))
    importance = Importance(len(layers)).to(site.model.device)
    for key, layer in tuned.layers.items():
        weighted = _Weighted(importance, layers.index(key[0]))
        parametrize.register_parametrization(side_b(layer), "weight", weighted)
    optimizer = torch.optim.AdamW(tuned.parameters.values(), params.learning_rate, weight_decay=0.0)
    for step in range(params.steps):
        optimizer.zero_grad()
        torch.autograd.backward(_mean_loss(tuned, learnt[step % len(learnt)]))
        optimizer.step()
        loss = _mean_loss(tuned, judged[step % len(judged)])
        (gradient_L,) = torch.autograd.grad(loss, [importance.alpha_L])
        importance.alpha_L.data -= params.rate * gradient_L
    tuned.model.unload()
    return dict(zip(layers, importance.alpha_L.tolist(), strict=True))


def _mean_loss(tuned: Tuned, batch: Batch) -> Tensor:
    return summed_loss(tuned.model, batch) / count(batch)
