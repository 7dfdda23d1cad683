"""The earlier cuts of a schedule: cut, repair, lift back, and again; the last cut is the job's own.

Each step is the pipeline itself in a directory of its own, with a smaller target and its share of
the recovery's tokens.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pruning.allocation.targets import costs, wanted
from pruning.geometry import Geometry
from pruning.jobs.outputs import ROUNDS, base_to_cut, lifted_base, slim_base
from pruning.jobs.resuming import kept_in
from pruning.jobs.stage import Stage
from pruning.lifting import lift
from pruning.methods import resolve
from pruning.plan import Plan
from pruning.progress import Progress, part
from pruning.recipe import Blocks, Method, PruneSpec
from pruning.registry import own_approach, schedule
from pruning.weights.checkpoint import Checkpoint

STEP = ("calibrate", "plan", "slice", "recover")


def targets_of(spec: PruneSpec) -> list[float]:
    """The targets of all cuts, the recipe's own last; of a size, as a fraction of the base."""
    targets, _, params = schedule(spec.recipe.schedule)
    return targets(_whole(spec), params)


def _whole(spec: PruneSpec) -> float:
    if spec.recipe.target is not None:
        return spec.recipe.target
    geometry = Geometry.of(spec.base)
    return wanted(geometry, spec.recipe) / costs(geometry, spec.recipe).base


def aimed_at(spec: PruneSpec, target: float) -> PruneSpec:
    """The spec with another target; a size becomes what is left after such a part of the way."""
    recipe, changes = spec.recipe, dict[str, Any](target=target)
    if recipe.size is not None:
        base = costs(Geometry.of(spec.base), recipe).base
        changes = {"size": recipe.size.aiming_at(round(base * (1 - target)))}
    return spec.model_copy(update={"recipe": recipe.model_copy(update=changes)})


def aimed(spec: PruneSpec, work: Path) -> PruneSpec:
    """The spec with the target that its last cut has: its own, unless the schedule chose one."""
    rounds = work / "schedule" / ROUNDS
    if not rounds.is_file():
        return spec
    return aimed_at(spec, json.loads(rounds.read_text())["target"])


def share_of(method: Method, cuts: int) -> Method:
    """A recovery method with its share of the tokens, if it is one that trains."""
    _, params = resolve("recovery", method)
    if cuts == 1 or "tokens" not in type(params).model_fields:
        return method
    tokens = params.model_dump()["tokens"] // cuts
    return method.model_copy(update={"params": {**method.params, "tokens": tokens}})


def step_of(spec: PruneSpec, target: float) -> PruneSpec:
    """What an earlier cut runs; whole blocks and biases are left to the last one."""
    cuts = len(targets_of(spec))
    changes = {
        "schedule": Method(name="one_shot"),
        "recovery": tuple(share_of(method, cuts) for method in spec.recipe.recovery),
        "blocks": Blocks(),
        "bias_compensation": False,
        "export": "uniform" if Geometry.of(spec.base).architecture.uniform_only else "per_layer",
    }
    step = aimed_at(spec, target)
    return step.model_copy(update={"recipe": step.recipe.model_copy(update=changes)})


def approach(spec: PruneSpec, work: Path, stages: Mapping[str, Stage], progress: Progress) -> None:
    """Make all cuts but the last, and leave the lifted base where the last one looks for it.

    A step that a kill finds finished is not made again; what it needed is gone by then.  Schedules
    that do more than cut have an approach of their own.
    """
    if own := own_approach(spec.recipe.schedule):
        own(spec, work, stages, progress)
        return
    *earlier, _ = targets_of(spec)
    state = work / "schedule.state"
    kept = kept_in(state, spec=spec.model_dump_json())
    steps = [kept / str(i) for i in range(len(earlier) + 1)]
    first = max((i for i, step in enumerate(steps) if lifted_base(step).exists()), default=0)
    for i in range(first, len(earlier)):
        steps[i].mkdir(exist_ok=True)
        share = part(progress, i / len(earlier), (i + 1) / len(earlier))
        step = step_of(spec, earlier[i])
        cut_step(step, steps[i], stages, share)
        lift_step(step, steps[i], steps[i + 1])
        shutil.rmtree(steps[i])
    if earlier:
        shutil.copytree(lifted_base(steps[-1]), lifted_base(work), copy_function=os.link)


def cut_step(spec: PruneSpec, work: Path, stages: Mapping[str, Stage], progress: Progress) -> None:
    """Make a cut of `step_of`, and repair it."""
    for i, name in enumerate(STEP):
        stages[name](spec, work, part(progress, i / len(STEP), (i + 1) / len(STEP)))


def lift_step(spec: PruneSpec, work: Path, following: Path) -> None:
    """Write the base that the next step cuts, whole or not at all."""
    plan = Plan.model_validate_json((work / "plan" / "plan.json").read_bytes())
    draft = following / "draft"
    shutil.rmtree(draft, ignore_errors=True)
    base = Checkpoint(base_to_cut(spec, work))
    lift(base, plan, slim_base(spec, work), draft)
    lifted_base(following).parent.mkdir(exist_ok=True)
    draft.rename(lifted_base(following))
