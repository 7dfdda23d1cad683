"""The scores of all units of a base, layer by layer, by the criterion of a recipe."""

from pruning.progress import Progress
from pruning.recipe import Recipe
from pruning.registry import LayerScores, LayerView, criterion
from pruning.stats import Statistics
from pruning.units import KINDS
from pruning.weights.checkpoint import Checkpoint
from pruning.weights.tensors import block_of


def score_layers(
    checkpoint: Checkpoint, statistics: Statistics, recipe: Recipe, progress: Progress
) -> list[LayerScores]:
    """One layer's weights in memory at a time."""
    score, _, params = criterion(recipe.criterion)
    num_layers = len(checkpoint.geometry.layers)
    kinds = (*KINDS, *({"query_head"} & set(recipe.units)))
    linears = checkpoint.geometry.architecture.linears
    scores: list[LayerScores] = []
    for layer in range(num_layers):
        progress(layer / num_layers, f"scoring layer {layer + 1} of {num_layers}")
        tensors = checkpoint.layer(layer)
        weights = {name: tensors[f"{block_of(name)}.{name}.weight"].float() for name in linears}
        view = LayerView(checkpoint.geometry, layer, weights, statistics, recipe.seed, kinds)
        scores.append(score(view, params))
    return scores
