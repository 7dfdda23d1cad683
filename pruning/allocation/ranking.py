"""Units of all layers in one ranking: what leaves first, in bundles that keep to multiples."""

# Shape suffix:  U = units of a kind in a layer.

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from pruning.allocation.budget import Counts


@dataclass(frozen=True, order=True)
class Bundle:
    """Units of one layer that leave together; bundles of a layer leave in their order."""

    score: float  # mean of its units
    layer: int
    position: int
    size: int


def bundles(scores: Mapping[int, Tensor], counts: Counts) -> list[Bundle]:
    """All that may leave, the lowest first."""
    return sorted(
        b for layer, kept in counts.items() for b in _of_layer(layer, scores[layer], kept)
    )


def _of_layer(layer: int, scores_U: Tensor, kept: Sequence[int]) -> list[Bundle]:
    ranked: list[float] = scores_U.sort().values.tolist()
    dense = len(ranked)
    return [
        Bundle(
            sum(ranked[dense - wide : dense - narrow]) / (wide - narrow), layer, i, wide - narrow
        )
        for i, (wide, narrow) in enumerate(pairwise(kept))
    ]


def keep_best(scores: Mapping[int, Tensor], counts: Counts, total: float) -> dict[int, int]:
    """What each layer keeps when the lowest leave until about `total` stay, to half a bundle."""
    kept = {layer: widths[0] for layer, widths in counts.items()}
    out = sum(kept.values()) - total
    for bundle in bundles(scores, counts):
        if out < bundle.size / 2:
            break
        kept[bundle.layer] -= bundle.size
        out -= bundle.size
    return kept


def standardized(scores_U: Tensor) -> Tensor:
    """Zero mean and unit deviation; zeros where all are equal."""
    deviation = scores_U.std(correction=0)
    return (scores_U - scores_U.mean()) / deviation if deviation > 0 else scores_U * 0
