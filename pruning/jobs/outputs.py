"""Where the stages of a job leave what others read (torch-free)."""

import shutil
from pathlib import Path

from pruning.allocation.latency import LatencyTable
from pruning.recipe import PruneSpec, Recipe

LATENCY = "latency.json"  # times by which `plan` reaches a latency, in WORK/calibrate
REFERENCE, SCORES = "reference", "scores"  # what jobs on one base share, see `shared`
ROUNDS = "rounds.json"  # what the schedule until_stop leaves of itself in WORK/schedule


def emptied(work: Path, stage: str) -> Path:
    """The folder that a stage fills, without what an interrupted attempt left in it."""
    shutil.rmtree(work / stage, ignore_errors=True)
    (work / stage).mkdir(parents=True)
    return work / stage


def shared(work: Path, name: str, own: Path) -> Path:
    """Where a job keeps such measurements: WORK/NAME if others gave it theirs, else `own`."""
    given = work / name
    return given if given.is_dir() else own


def lifted_base(work: Path) -> Path:
    """Where the earlier cuts of a schedule leave what they made, in the dense geometry."""
    return work / "schedule" / "base"


def timed(recipe: Recipe, work: Path) -> Recipe:
    """The recipe with the times that `calibrate` measured or was given, if it needs any."""
    measured = work / "calibrate" / LATENCY
    if recipe.size is None or not measured.is_file():
        return recipe
    table = LatencyTable.model_validate_json(measured.read_bytes())
    size = recipe.size.model_copy(update={"table": table})
    return recipe.model_copy(update={"size": size})


def base_to_cut(spec: PruneSpec, work: Path) -> Path:
    """The base that is calibrated, planned for and cut: the dense one unless there were cuts."""
    lifted = lifted_base(work)
    return lifted if lifted.is_dir() else spec.base


def slim_base(spec: PruneSpec, work: Path) -> Path:
    """The slim base as it is to be served: repaired, or as it was cut if nothing repairs it."""
    return work / ("recover" if spec.recipe.recovery else "slice") / "model"
