"""Whole attention and MLP blocks that leave before anything narrower does."""

from collections.abc import Sequence

from pruning.recipe import Blocks
from pruning.registry import LayerScores


def remaining(scores: Sequence[LayerScores], blocks: Blocks) -> tuple[list[int], list[int]]:
    """The layers that keep their attention, and those that keep their MLP.

    A block scores as much as its units together; the lowest leave first, the earlier on a tie.
    """
    return (
        _without([float(s.kv_group.sum()) for s in scores], blocks.attention),
        _without([float(s.ffn_channel.sum()) for s in scores], blocks.mlp),
    )


def _without(totals: Sequence[float], count: int) -> list[int]:
    ranking = sorted(range(len(totals)), key=lambda layer: totals[layer])
    return sorted(ranking[count:])
