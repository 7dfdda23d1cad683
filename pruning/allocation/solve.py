"""From scores to a plan: the recipe's allocator says how many stay where, the best of them do."""

from collections.abc import Callable, Sequence

from torch import Tensor

from pruning.allocation import budget
from pruning.allocation.blocks import remaining
from pruning.allocation.selection import select
from pruning.plan import Plan
from pruning.progress import Progress
from pruning.recipe import Recipe
from pruning.registry import LayerScores, Problem, allocator, criterion
from pruning.stats import Statistics
from pruning.weights.checkpoint import Checkpoint


def problem(
    checkpoint: Checkpoint,
    recipe: Recipe,
    scores: Sequence[LayerScores],
    statistics: Statistics,
    calibration: Callable[[], Tensor],
    progress: Progress,
) -> Problem:
    """What the allocator gets to see once whole blocks have left."""
    return Problem(
        checkpoint=checkpoint,
        recipe=recipe,
        space=budget.space(checkpoint.geometry, recipe, *remaining(scores, recipe)),
        scores=scores,
        comparable=criterion(recipe.criterion)[1].comparable,
        statistics=statistics,
        calibration=calibration,
        progress=progress,
    )


def solve(problem: Problem) -> Plan:
    """The plan of the recipe's allocator."""
    allocate, _, params = allocator(problem.recipe.allocator)
    widths = allocate(problem, params)
    return select(problem.scores, widths, problem.recipe.bias_compensation)
