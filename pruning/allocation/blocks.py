"""Whole attention and MLP blocks that leave before anything narrower does."""

from collections.abc import Collection, Sequence

from pruning.recipe import Recipe
from pruning.registry import LayerScores


def remaining(scores: Sequence[LayerScores], recipe: Recipe) -> tuple[list[int], list[int]]:
    """The layers that keep their attention, and those that keep their MLP.

    A block scores as much as its units together; the lowest leave first, the earlier on a tie.
    Layers with floors of their own keep their blocks.
    """
    protected, blocks = recipe.floors.layers, recipe.blocks
    return (
        _without([float(s.kv_group.sum()) for s in scores], blocks.attention, protected),
        _without([float(s.ffn_channel.sum()) for s in scores], blocks.mlp, protected),
    )


def _without(totals: Sequence[float], count: int, protected: Collection[int]) -> list[int]:
    free = [layer for layer in range(len(totals)) if layer not in protected]
    leaving = sorted(free, key=lambda layer: totals[layer])[:count]
    return [layer for layer in range(len(totals)) if layer not in leaving]
