"""The scores of all units of a base, layer by layer, by the criterion of a recipe."""

from pathlib import Path

from safetensors.torch import load_file, save_file

from pruning.progress import Progress
from pruning.recipe import Recipe
from pruning.registry import LayerScores, LayerView, criterion
from pruning.statistics.streaming import return_freed_memory
from pruning.stats import Statistics
from pruning.units import KINDS, Kind
from pruning.weights.checkpoint import Checkpoint
from pruning.weights.tensors import block_of


def score_layers(
    checkpoint: Checkpoint,
    statistics: Statistics,
    recipe: Recipe,
    progress: Progress,
    state: Path | None = None,
) -> list[LayerScores]:
    """One layer's weights in memory at a time; with a `state`, a kill costs one layer's scores."""
    score, _, params = criterion(recipe.criterion)
    num_layers = len(checkpoint.geometry.layers)
    kinds: tuple[Kind, ...] = (*KINDS, "query_head") if "query_head" in recipe.units else KINDS
    linears = checkpoint.geometry.architecture.linears
    scores: list[LayerScores] = []
    for layer in range(num_layers):
        if state and (found := _found(state, layer)):
            scores.append(found)
            continue
        progress(layer / num_layers, f"scoring layer {layer + 1} of {num_layers}")
        tensors = checkpoint.layer(layer)
        weights = {name: tensors[f"{block_of(name)}.{name}.weight"].float() for name in linears}
        view = LayerView(checkpoint.geometry, layer, weights, statistics, recipe.seed, kinds)
        scores.append(score(view, params))
        if state:
            _keep(state, layer, scores[-1])
        return_freed_memory()
    return scores


def _found(state: Path, layer: int) -> LayerScores | None:
    path = state / f"layer-{layer}.safetensors"
    return LayerScores(**load_file(path)) if path.exists() else None


def _keep(state: Path, layer: int, scores: LayerScores) -> None:
    """Whole or not at all."""
    state.mkdir(parents=True, exist_ok=True)
    found = {name: scores_U for name, scores_U in vars(scores).items() if scores_U is not None}
    save_file({name: scores_U.contiguous() for name, scores_U in found.items()}, state / "draft")
    (state / "draft").rename(state / f"layer-{layer}.safetensors")
