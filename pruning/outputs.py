"""Where the stages of a job leave what others read (torch-free)."""

from pathlib import Path

from pruning.recipe import PruneSpec


def slim_base(spec: PruneSpec, work: Path) -> Path:
    """The slim base as it is to be served: repaired, or as it was cut if nothing repairs it."""
    return work / ("recover" if spec.recipe.recovery else "slice") / "model"
