"""Where the stages of a job leave what others read (torch-free)."""

from pathlib import Path

from pruning.recipe import PruneSpec


def lifted_base(work: Path) -> Path:
    """Where the earlier cuts of a schedule leave what they made, in the dense geometry."""
    return work / "schedule" / "base"


def base_to_cut(spec: PruneSpec, work: Path) -> Path:
    """The base that is calibrated, planned for and cut: the dense one unless there were cuts."""
    lifted = lifted_base(work)
    return lifted if lifted.is_dir() else spec.base


def slim_base(spec: PruneSpec, work: Path) -> Path:
    """The slim base as it is to be served: repaired, or as it was cut if nothing repairs it."""
    return work / ("recover" if spec.recipe.recovery else "slice") / "model"
