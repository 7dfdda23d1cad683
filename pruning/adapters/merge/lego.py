"""LoRA-LEGO: the atoms of all adapters in k clusters, and each cluster's centroid a new atom.

Zhao et al., "Merging LoRAs like Playing LEGO: Pushing the Modularity of LoRA to Extremes Through
Rank-Wise Clustering", ICLR 2025, https://arxiv.org/abs/2409.16167.
"""

# Shape suffixes:  P = pooled atoms,  F = inputs + outputs of the linear,  K = clusters.

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pruning.adapters import algebra
from pruning.adapters.algebra import Bag
from pruning.adapters.kmeans import Clusters, cluster, fewest, means
from pruning.adapters.merging import Merged, Origin, Part
from pruning.methods.adapters import LegoParams


def merge(parts: Sequence[Part], params: LegoParams, seed: int) -> Merged:
    """Pool, cluster, average, reweight.  The order of atoms and parts changes nothing."""
    pool = _pool(parts, params)
    atoms_PF = torch.cat([pool.a_RI, pool.b_OR.T], dim=1)
    order_P = _by_content(atoms_PF)
    labels_P = torch.empty_like(order_P)
    labels_P[order_P] = _clusters(_features(pool, params)[order_P], parts, params, seed).labels_P
    centers_KF = means(atoms_PF, labels_P)
    if params.parameter_reweighting:
        centers_KF = centers_KF * _norm_decay(atoms_PF, centers_KF, labels_P, params)
    width = pool.a_RI.shape[1]
    merged = Bag(centers_KF[:, :width], centers_KF[:, width:].T)
    if params.output_reweighting:
        mean_rank = sum(part.bag.rank for part in parts) / len(parts)
        merged = algebra.scale(merged, math.sqrt(mean_rank / merged.rank))
    return Merged(merged, _origins(parts, labels_P))


def _pool(parts: Sequence[Part], params: LegoParams) -> Bag:
    """All atoms, each of the forms of the same atom that `gauge` and `sign` ask for."""
    gauge = {"none": lambda bag: bag, "balanced": algebra.balanced, "svd": _canonical}[params.gauge]
    pool = algebra.cat([gauge(part.bag) for part in parts], [part.weight for part in parts])
    return algebra.positive(pool) if params.sign == "canonical" else pool


def _canonical(bag: Bag) -> Bag:
    return algebra.truncate(bag, bag.rank)


def _features(pool: Bag, params: LegoParams) -> Tensor:
    """What distances are measured on; (P, F).  unit: a and b each of length one."""
    a_PI, b_PO = pool.a_RI, pool.b_OR.T
    if params.feature == "unit":
        a_PI = torch.nn.functional.normalize(a_PI, dim=1)
        b_PO = torch.nn.functional.normalize(b_PO, dim=1)
    return torch.cat([a_PI, b_PO], dim=1)


def _by_content(atoms_PF: Tensor) -> Tensor:
    """An order of the atoms that does not depend on where they stand; (P,)."""
    keys = (*atoms_PF[:, :2].T.numpy(), atoms_PF.norm(dim=1).numpy())
    return torch.from_numpy(np.lexsort(keys))


def _clusters(
    features_PF: Tensor, parts: Sequence[Part], params: LegoParams, seed: int
) -> Clusters:
    if params.inertia is not None:
        return fewest(features_PF, params.inertia, seed)
    mean_rank = round(sum(part.bag.rank for part in parts) / len(parts))
    return cluster(features_PF, params.k or mean_rank, seed)


def _norm_decay(
    atoms_PF: Tensor, centers_KF: Tensor, labels_P: Tensor, params: LegoParams
) -> Tensor:
    """How much shorter than its members, on average, a centroid is; (K, 1)."""
    order = {"l2": 2.0, "inf": math.inf}[params.norm]
    wanted_K1 = means(torch.linalg.vector_norm(atoms_PF, order, dim=1, keepdim=True), labels_P)
    found_K1 = torch.linalg.vector_norm(centers_KF, order, dim=1, keepdim=True)
    return torch.where(found_K1 > 0, wanted_K1 / found_K1, 1.0)


def _origins(parts: Sequence[Part], labels_P: Tensor) -> tuple[tuple[Origin, ...], ...]:
    places = [(i, atom) for i, part in enumerate(parts) for atom in range(part.bag.rank)]
    origins = []
    for label in range(int(labels_P.max()) + 1):
        members = (labels_P == label).nonzero()[:, 0].tolist()
        share = 1 / len(members)
        origins.append(
            tuple(Origin(i, atom, share) for i, atom in map(places.__getitem__, members))
        )
    return tuple(origins)
