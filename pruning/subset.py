"""Which sequences of a pool calibrate: those near or far from what the pool is made of.

Sorscher et al., "Beyond Neural Scaling Laws: Beating Power Law Scaling via Data Pruning", NeurIPS
2022, https://arxiv.org/abs/2206.14486: embeddings are clustered by k-means, and an example is the
more difficult the further it lies, by cosine, from its nearest centroid, its prototype.  There
examples are images and their embeddings self-supervised; here they are sequences, and the
embedding is the mean over tokens of what the last layer of the base puts out.
"""

# Shape suffixes:  S = sequences of the pool,  T = tokens,  H = hidden,  K = clusters.

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from pruning.adapters.kmeans import cluster, means
from pruning.progress import Progress
from pruning.recipe import Text
from pruning.statistics.streaming import Stream
from pruning.weights.checkpoint import Checkpoint

CLUSTERS = 16  # the paper: any number within an order of magnitude of the classes does


def subset(
    checkpoint: Checkpoint, pool_ST: Tensor, text: Text, seed: int, work: Path, progress: Progress
) -> Tensor:
    """The `text.sequences` sequences of a pool that `text.select` names, in their order.

    Runs the pool through the base, one layer in memory; its hidden states lie below `work`.
    """
    if len(pool_ST) <= text.sequences:
        return pool_ST
    embedded_SH = embeddings(checkpoint, pool_ST, work, progress)
    return pool_ST[chosen(embedded_SH, text.select, text.sequences, seed)]


def embeddings(checkpoint: Checkpoint, ids_ST: Tensor, work: Path, progress: Progress) -> Tensor:
    """The mean over tokens of the last layer's outputs, of unit length; (S, H), float32."""
    found: list[Tensor] = []
    last = len(checkpoint.geometry.layers) - 1

    def keep(layer: nn.Module, inputs: Any, output_STH: Tensor) -> None:
        found.append(output_STH.mean(dim=1).cpu())

    def prepare(index: int, layer: nn.Module) -> None:
        if index == last:
            layer.register_forward_hook(keep)

    with TemporaryDirectory(dir=work) as states:
        Stream(checkpoint, ids_ST, Path(states)).forward(
            prepare, keep_inputs=False, progress=progress
        )
    return normalize(torch.cat(found), dim=1)


def chosen(embedded_SH: Tensor, select: str, count: int, seed: int) -> list[int]:
    """The indices of `count` rows, ascending.

    easy: the nearest to their centroid; hard: the furthest; prototypes: with as many clusters as
    rows are wanted, the nearest to each centroid.
    """
    clusters = count if select == "prototypes" else min(CLUSTERS, len(embedded_SH))
    labels_S = cluster(embedded_SH, clusters, seed).labels_P
    difficulty_S = difficulties(embedded_SH, labels_S)
    if select == "prototypes":
        nearest = {int(labels_S[i]): int(i) for i in difficulty_S.argsort(descending=True)}
        return sorted(nearest.values())
    ranked_S = difficulty_S.argsort(descending=select == "hard", stable=True)
    return sorted(ranked_S[:count].tolist())


def difficulties(embedded_SH: Tensor, labels_S: Tensor) -> Tensor:
    """One minus the cosine of each row and the centroid of its cluster; (S,)."""
    centroids_KH = normalize(means(embedded_SH, labels_S), dim=1)
    return 1 - (embedded_SH * centroids_KH[labels_S]).sum(dim=1)
