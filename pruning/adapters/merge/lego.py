"""LoRA-LEGO: the atoms of all adapters in k clusters, and each cluster's centroid a new atom.

Zhao et al., "Merging LoRAs like Playing LEGO: Pushing the Modularity of LoRA to Extremes Through
Rank-Wise Clustering", ICLR 2025, https://arxiv.org/abs/2409.16167.  The paper's form is `feature:
raw`, `centroid: mean`, `fit: 0` and `energy: false`.  Other choices are ours: distances between the
matrices b aᵀ, which neither gauge nor sign of an atom changes (`product`); the best rank-one
approximation of a cluster as its centroid (`rank_one`); columns b refit by least squares to the
mean of the sources, then, with more rounds of `fit`, rows a and columns b again, which leads to
`svd` in the end; and the length of that mean for the whole linear (`energy`).
"""

# Shape suffixes:  P = pooled atoms,  F = inputs + outputs of the linear, or P,  K = clusters.

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from pruning.adapters import algebra
from pruning.adapters.algebra import Bag
from pruning.adapters.kmeans import Clusters, cluster, fewest, means
from pruning.adapters.merging import Merged, Origin, Part
from pruning.methods.adapters import LegoParams

JITTER = 1e-6  # of the squared length of a point: atoms that are alike make a Gram singular


def merge(parts: Sequence[Part], params: LegoParams, seed: int) -> Merged:
    """Pool, cluster, average, reweight.  The order of atoms and parts changes nothing."""
    unordered = _pool(parts, params)
    order_P = _by_content(unordered)
    pool = unordered.select(order_P)
    labels_P = _clusters(_features(pool, params), parts, params, seed).labels_P
    merged = _centroids(pool, labels_P, params)
    if merged.rank < pool.rank and (params.fit or params.energy):
        mean = algebra.scale(pool, merged.rank / pool.rank)  # a cluster is this large on average
        merged = _fitted(merged, mean, params.fit)
        merged = _as_long_as(mean, merged) if params.energy else merged
    if params.output_reweighting:
        mean_rank = sum(part.bag.rank for part in parts) / len(parts)
        merged = algebra.scale(merged, math.sqrt(mean_rank / merged.rank))
    return Merged(merged, _origins(parts, order_P, labels_P))


def _pool(parts: Sequence[Part], params: LegoParams) -> Bag:
    """All atoms, each of the forms of the same atom that `gauge` and `sign` ask for."""
    gauge = {"none": lambda bag: bag, "balanced": algebra.balanced, "svd": _canonical}[params.gauge]
    pool = algebra.cat([gauge(part.bag) for part in parts], [part.weight for part in parts])
    return algebra.positive(pool) if params.sign == "canonical" else pool


def _canonical(bag: Bag) -> Bag:
    return algebra.truncate(bag, bag.rank)


def _stacked(pool: Bag) -> Tensor:
    return torch.cat([pool.a_RI, pool.b_OR.T], dim=1)


def _features(pool: Bag, params: LegoParams) -> Tensor:
    """Points whose distances are those of the atoms; (P, F).

    unit: a and b each of length one.  product: b aᵀ of length one, as rows of a Cholesky factor of
    the inner products (a · a')(b · b').
    """
    if params.feature == "raw":
        return _stacked(pool)
    a_PI, b_PO = normalize(pool.a_RI, dim=1), normalize(pool.b_OR.T, dim=1)
    if params.feature == "unit":
        return torch.cat([a_PI, b_PO], dim=1)
    a_PI, b_PO = a_PI.double(), b_PO.double()  # rounding must stay below the jitter
    gram_PP = (a_PI @ a_PI.T) * (b_PO @ b_PO.T)
    gram_PP.diagonal().add_(JITTER)
    factor_PP: Tensor = torch.linalg.cholesky(gram_PP)
    return factor_PP.float()


def _by_content(pool: Bag) -> Tensor:
    """An order of the atoms that does not depend on where they stand; (P,)."""
    atoms_PF = _stacked(pool)
    keys = (*atoms_PF[:, :2].T.numpy(), atoms_PF.norm(dim=1).numpy())
    return torch.from_numpy(np.lexsort(keys))


def _clusters(
    features_PF: Tensor, parts: Sequence[Part], params: LegoParams, seed: int
) -> Clusters:
    if params.inertia is not None:
        return fewest(features_PF, params.inertia, seed)
    mean_rank = round(sum(part.bag.rank for part in parts) / len(parts))
    return cluster(features_PF, params.k or mean_rank, seed)


def _centroids(pool: Bag, labels_P: Tensor, params: LegoParams) -> Bag:
    """The new atoms, one to a cluster."""
    if params.centroid == "rank_one":
        members = (pool.select((labels_P == k).nonzero()[:, 0]) for k in range(_count(labels_P)))
        return algebra.cat([_rank_one(own, params) for own in members], [1.0] * _count(labels_P))
    atoms_PF = _stacked(pool)
    centers_KF = means(atoms_PF, labels_P)
    if params.parameter_reweighting:
        centers_KF = centers_KF * _norm_decay(atoms_PF, centers_KF, labels_P, params)
    width = pool.a_RI.shape[1]
    return Bag(centers_KF[:, :width], centers_KF[:, width:].T)


def _count(labels_P: Tensor) -> int:
    return int(labels_P.max()) + 1


def _rank_one(members: Bag, params: LegoParams) -> Bag:
    """The best approximation of a cluster's mean; reweighted, as long as its members on average."""
    one = algebra.truncate(members, 1)
    if not params.parameter_reweighting:
        return algebra.scale(one, 1 / members.rank)
    wanted, found = (_lengths(bag, params).mean() for bag in (members, one))
    return algebra.scale(one, float(wanted / found) if found > 0 else 1.0)


def _lengths(bag: Bag, params: LegoParams) -> Tensor:
    """Of every b aᵀ; (P,)."""
    order = {"l2": 2.0, "inf": math.inf}[params.norm]
    lengths_a: Tensor = torch.linalg.vector_norm(bag.a_RI, order, dim=1)
    lengths_b: Tensor = torch.linalg.vector_norm(bag.b_OR, order, dim=0)
    return lengths_a * lengths_b


def _norm_decay(
    atoms_PF: Tensor, centers_KF: Tensor, labels_P: Tensor, params: LegoParams
) -> Tensor:
    """How much shorter than its members, on average, a centroid is; (K, 1)."""
    order = {"l2": 2.0, "inf": math.inf}[params.norm]
    wanted_K1 = means(torch.linalg.vector_norm(atoms_PF, order, dim=1, keepdim=True), labels_P)
    found_K1 = torch.linalg.vector_norm(centers_KF, order, dim=1, keepdim=True)
    return torch.where(found_K1 > 0, wanted_K1 / found_K1, 1.0)


def _fitted(merged: Bag, mean: Bag, rounds: int) -> Bag:
    """Brought closer to `mean` by alternating least squares: b in every round, before it a."""
    for number in range(rounds):
        if number:
            inverse_KO = torch.linalg.pinv(merged.b_OR)
            merged = replace(merged, a_RI=(inverse_KO @ mean.b_OR) @ mean.a_RI)
        inverse_IK = torch.linalg.pinv(merged.a_RI)
        merged = replace(merged, b_OR=mean.b_OR @ (mean.a_RI @ inverse_IK))
    return merged


def _as_long_as(mean: Bag, merged: Bag) -> Bag:
    """Scaled so that ΔW has the Frobenius norm of that of `mean`."""
    found = algebra.norm(merged)
    return algebra.scale(merged, algebra.norm(mean) / found) if found > 0 else merged


def _origins(
    parts: Sequence[Part], order_P: Tensor, labels_P: Tensor
) -> tuple[tuple[Origin, ...], ...]:
    places = [(i, atom) for i, part in enumerate(parts) for atom in range(part.bag.rank)]
    origins = []
    for label in range(_count(labels_P)):
        members = order_P[labels_P == label].tolist()
        share = 1 / len(members)
        origins.append(
            tuple(Origin(i, atom, share) for i, atom in map(places.__getitem__, members))
        )
    return tuple(origins)
