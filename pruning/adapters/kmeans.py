"""k-means with k-means++ seeds and restarts, for pools of a few hundred points.

Lloyd, "Least squares quantization in PCM", IEEE Trans. Inf. Theory 1982,
https://doi.org/10.1109/TIT.1982.1056489; Arthur and Vassilvitskii, "k-means++: The Advantages of
Careful Seeding", SODA 2007, https://dl.acm.org/doi/10.5555/1283383.1283494.
"""

# Shape suffixes:  P = points,  F = features,  K = clusters.

from dataclasses import dataclass

import torch
from torch import Tensor

RESTARTS, STEPS = 4, 50


@dataclass(frozen=True)
class Clusters:
    """Which cluster each point is in, none of them empty, and the sum of squared distances."""

    labels_P: Tensor
    inertia: float


def cluster(points_PF: Tensor, k: int, seed: int) -> Clusters:
    """The best of some runs of Lloyd's algorithm with `k` clusters, at most one per point."""
    if k >= len(points_PF):
        return Clusters(torch.arange(len(points_PF)), 0.0)
    generator = torch.Generator().manual_seed(seed)
    runs = [_lloyd(points_PF, _seeds(points_PF, k, generator)) for _ in range(RESTARTS)]
    return min(runs, key=lambda run: run.inertia)


def fewest(points_PF: Tensor, share: float, seed: int) -> Clusters:
    """The fewest clusters that leave at most `share` of the inertia of one single cluster.

    By bisection: inertia falls with k but for the luck of the seeds.
    """
    allowed = share * cluster(points_PF, 1, seed).inertia
    low, high = 1, len(points_PF)
    while low < high:
        middle = (low + high) // 2
        if cluster(points_PF, middle, seed).inertia <= allowed:
            high = middle
        else:
            low = middle + 1
    return cluster(points_PF, low, seed)


def means(points_PF: Tensor, labels_P: Tensor) -> Tensor:
    """The centroid of each cluster; (K, F)."""
    k = int(labels_P.max()) + 1
    sums_KF = points_PF.new_zeros(k, points_PF.shape[1]).index_add(0, labels_P, points_PF)
    return sums_KF / torch.bincount(labels_P, minlength=k)[:, None]


def _seeds(points_PF: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """k-means++: each seed is drawn with the squared distance to the nearest earlier one."""
    chosen = [int(torch.randint(len(points_PF), (), generator=generator))]
    distance_P = (points_PF - points_PF[chosen[0]]).square().sum(dim=1)
    while len(chosen) < k:
        odds_P = distance_P if distance_P.any() else torch.ones_like(distance_P)
        chosen.append(int(torch.multinomial(odds_P, 1, generator=generator)))
        to_last_P = (points_PF - points_PF[chosen[-1]]).square().sum(dim=1)
        distance_P = torch.minimum(distance_P, to_last_P)
    return points_PF[chosen]


def _lloyd(points_PF: Tensor, centers_KF: Tensor) -> Clusters:
    labels_P = torch.full((len(points_PF),), -1)
    for _ in range(STEPS):
        nearest = torch.cdist(points_PF, centers_KF).min(dim=1)
        found_P = _without_empty(nearest.indices, nearest.values, len(centers_KF))
        if torch.equal(found_P, labels_P):
            break
        labels_P = found_P
        centers_KF = means(points_PF, labels_P)
    inertia = (points_PF - centers_KF[labels_P]).square().sum()
    return Clusters(labels_P, float(inertia))


def _without_empty(labels_P: Tensor, distance_P: Tensor, k: int) -> Tensor:
    """Give each empty cluster the point that is farthest from its own and not alone there."""
    counts_K = torch.bincount(labels_P, minlength=k)
    for empty in (counts_K == 0).nonzero()[:, 0].tolist():
        movable_P = torch.where(counts_K[labels_P] > 1, distance_P, -1.0)
        point = int(movable_P.argmax())
        counts_K[labels_P[point]] -= 1
        labels_P[point], distance_P[point], counts_K[empty] = empty, 0.0, 1
    return labels_P
