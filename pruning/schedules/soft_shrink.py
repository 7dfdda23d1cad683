"""Soft shrinkage: training in which the weakest units lose a little in each step, then one cut.

Wang et al., "Iterative Soft Shrinkage Learning for Efficient Image Super-Resolution", ICCV 2023,
https://arxiv.org/abs/2303.09650 (ISS-P): after each step the weights below a percentile of their
magnitudes are multiplied by 0.99 instead of removed, and the choice is made anew in each step, so
that a weight may come back.  Here what shrinks are whole units, by the norm of all their weights,
as many in each layer as the recipe's plan for the dense base removes.
"""

# Shape suffix:  U = units.

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruning.approach import share_of, step_of, targets_of
from pruning.evaluation import load
from pruning.geometry import Geometry
from pruning.jobs.outputs import lifted_base
from pruning.jobs.resuming import kept_in
from pruning.methods import resolve
from pruning.methods.recovery import DistillParams
from pruning.methods.schedules import SoftShrinkParams
from pruning.plan import Plan
from pruning.progress import Progress, part
from pruning.recipe import PruneSpec
from pruning.training.data import training_split
from pruning.training.fit import choose
from pruning.training.losses import distillation
from pruning.training.trainer import Steps, train
from pruning.units import BLOCKS, Kind, members
from pruning.weights.rewriting import rewrite
from pruning.weights.tensors import EMBEDDING, HEAD

Stages = Mapping[str, Callable[[PruneSpec, Path, Progress], None]]


def targets(target: float, params: SoftShrinkParams) -> list[float]:
    """Shrinking and cutting aim at the same, and share the tokens of the recovery."""
    return [target, target]


def approach(spec: PruneSpec, work: Path, stages: Stages, progress: Progress) -> None:
    """Distil the dense base into itself while units shrink; killed and run again, same bytes.

    Needs memory for two dense bases in float32, and four times the body of one.
    """
    state = work / "schedule.state"
    found = kept_in(state, spec=spec.model_dump_json())
    plan = _plan(spec, found / "plan", stages, part(progress, 0, 0.1))
    _, params = resolve("schedule", spec.recipe.schedule)
    assert isinstance(params, SoftShrinkParams)
    student = load(spec.base)
    shrink = partial(shrink_units, student.model.layers, Geometry.of(spec.base), plan, params.ratio)
    (found / "training").mkdir(exist_ok=True)
    _distil(spec, student, shrink, found / "training", part(progress, 0.1, 1))
    draft = found / "draft"
    shutil.rmtree(draft, ignore_errors=True)
    rewrite(spec.base, draft, student.state_dict().__getitem__)
    draft.rename(lifted_base(work))
    shutil.rmtree(state)


def _plan(spec: PruneSpec, step: Path, stages: Stages, progress: Progress) -> Plan:
    """How many units the recipe would leave in each layer of the dense base."""
    step.mkdir(exist_ok=True)
    asked = step_of(spec, targets_of(spec)[-1])
    for i, name in enumerate(("calibrate", "plan")):
        stages[name](asked, step, part(progress, i / 2, (i + 1) / 2))
    return Plan.model_validate_json((step / "plan" / "plan.json").read_bytes())


def _distil(
    spec: PruneSpec, student: Any, shrink: Callable[[], None], state: Path, progress: Progress
) -> None:
    method = next(method for method in spec.recipe.recovery if method.name == "distill")
    _, params = resolve("recovery", share_of(method, 2))
    assert isinstance(params, DistillParams)
    choose(student, lambda name: name not in (EMBEDDING, HEAD))
    moving = {name: p for name, p in student.named_parameters() if p.requires_grad}
    loss = distillation(student, load(spec.base), params.temperature)
    data = training_split(spec, params.held_out)
    steps = Steps(after=shrink)
    train(moving, loss, data, params, spec.recipe.seed, state, progress, steps)


@torch.no_grad()
def shrink_units(layers: nn.ModuleList, geometry: Geometry, plan: Plan, ratio: float) -> None:
    """Multiply by `ratio` all weights of the weakest units, as many as the plan removes."""
    for index, layer in enumerate(layers):
        stays = plan.layers[index]
        kinds: dict[Kind, int] = {
            "kv_group": len(stays.kv_groups),
            "ffn_channel": len(stays.ffn_channels),
        }
        for kind, count in kinds.items():
            weights = _weights(layer, geometry, index, kind)
            norms_U = sum(unit.square().sum(dim=(1, 2)) for unit in weights)
            assert isinstance(norms_U, Tensor)
            weakest = norms_U.argsort(stable=True)[: len(norms_U) - count]
            for unit in weights:
                unit[weakest] *= ratio


def _weights(layer: nn.Module, geometry: Geometry, index: int, kind: Kind) -> list[Tensor]:
    """Views of the weights of a layer, units first: (U, channels of a unit, the other axis)."""
    views = []
    for member in members(geometry, index, kind):
        weight = layer.get_parameter(f"{BLOCKS[kind]}.{member.linear}.weight").detach()
        rows = weight if member.axis == 0 else weight.T
        for span in member.spans:
            part = rows[span.start : span.start + member.units * span.channels]
            views.append(part.view(member.units, span.channels, rows.shape[1]))
    return views
