"""The scores of all units of a base, layer by layer, by the criterion of a recipe."""

from pathlib import Path

from safetensors.torch import load_file, save_file

from pruning.geometry import LINEARS
from pruning.progress import Progress
from pruning.recipe import Recipe
from pruning.registry import LayerScores, LayerView, criterion
from pruning.stats import Statistics
from pruning.weights.checkpoint import Checkpoint
from pruning.weights.tensors import block_of


def score_layers(
    checkpoint: Checkpoint,
    statistics: Statistics,
    recipe: Recipe,
    progress: Progress,
    state: Path | None = None,
) -> list[LayerScores]:
    """One layer's weights in memory at a time; scores found in the directory `state` stand."""
    num_layers = len(checkpoint.geometry.layers)
    scores: list[LayerScores] = []
    for layer in range(num_layers):
        path = state and state / f"layer-{layer}.safetensors"
        if path and path.exists():
            scores.append(LayerScores(**load_file(path)))
            continue
        progress(layer / num_layers, f"scoring layer {layer + 1} of {num_layers}")
        scores.append(_score(checkpoint, statistics, recipe, layer))
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(vars(scores[-1]), path.with_suffix(".draft"))
            path.with_suffix(".draft").rename(path)
    return scores


def _score(
    checkpoint: Checkpoint, statistics: Statistics, recipe: Recipe, layer: int
) -> LayerScores:
    score, _, params = criterion(recipe.criterion)
    tensors = checkpoint.layer(layer)
    weights = {name: tensors[f"{block_of(name)}.{name}.weight"].float() for name in LINEARS}
    view = LayerView(checkpoint.geometry, layer, weights, statistics, recipe.seed)
    return score(view, params)
