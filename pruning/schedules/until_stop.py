"""Rounds of pruning and training, each as deep as the weights are sparse, until their index falls.

Diao et al., "Pruning Deep Neural Networks from a Sparsity Perspective", ICLR 2023,
https://arxiv.org/abs/2302.05601 (SAP): with the PQ index I of the d weights that are left, at least
m = d · (1 + η)^(−q/(q−p)) · (1 − I)^(pq/(q−p)) must stay, so a round removes min(γ (1 − m/d), β) of
them.  The paper's hypothesis is that I falls while redundancy leaves, rises, and falls again when
the network collapses; here the rounds stop at that second fall, and the round before it counts.
The weights are those of all linears of the body; what leaves are units, as the recipe scores them.
The recipe's target is the most that may leave.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from safetensors import safe_open

from pruning.approach import cut_step, lift_step, step_of, targets_of
from pruning.jobs.outputs import ROUNDS, lifted_base, slim_base
from pruning.jobs.resuming import kept_in
from pruning.methods import resolve
from pruning.methods.schedules import UntilStopParams
from pruning.progress import Progress, part
from pruning.recipe import PruneSpec

Stages = Mapping[str, Callable[[PruneSpec, Path, Progress], None]]


@dataclass(frozen=True)
class Round:
    """What had left after a round, as a target tells it, and the PQ index of what stayed."""

    target: float
    index: float


def targets(target: float, params: UntilStopParams) -> list[float]:
    """The deepest that each round may go; they share the tokens of the recovery."""
    return [target] * params.rounds


def approach(spec: PruneSpec, work: Path, stages: Stages, progress: Progress) -> None:
    """Make rounds until one is the last, and leave the base that the best of them was cut from.

    The last cut makes that round again, with the whole blocks and biases of the recipe.  A kill
    costs the round that it interrupts.
    """
    _, params = resolve("schedule", spec.recipe.schedule)
    assert isinstance(params, UntilStopParams)
    state, most = work / "schedule.state", targets_of(spec)[-1]
    found = kept_in(state, spec=spec.model_dump_json())
    rounds = _read(found) or [Round(0.0, pq_index(spec.base, params.p))]
    while not is_over(rounds, most, params.rounds):
        number = len(rounds) - 1
        share = part(progress, number / params.rounds, (number + 1) / params.rounds)
        before, step, following = (found / str(number + i) for i in (-2, 0, 1))
        rounds.append(_round(spec, step, following, rounds[-1], params, stages, share))
        _write(found, rounds)
        shutil.rmtree(before, ignore_errors=True)
    best = len(rounds) - (2 if has_collapsed([r.index for r in rounds]) else 1)
    if best > 1:
        lifted_base(found / str(best - 1)).rename(lifted_base(work))
    told = {"target": rounds[best].target, "rounds": [asdict(r) for r in rounds]}
    (work / "schedule" / ROUNDS).write_text(json.dumps(told, indent=2) + "\n")
    shutil.rmtree(state)


def is_over(rounds: Sequence[Round], most: float, at_most: int) -> bool:
    """Whether the target is reached, the rounds are used up, or the index says to stop."""
    return (
        rounds[-1].target >= most
        or len(rounds) > at_most
        or has_collapsed([r.index for r in rounds])
    )


def has_collapsed(indices: Sequence[float]) -> bool:
    """Whether the index falls after it has risen."""
    rises = [later > earlier for earlier, later in pairwise(indices)]
    return bool(rises) and not rises[-1] and any(rises)


def depth(index: float, params: UntilStopParams) -> float:
    """The part of what is left that a round removes: min(γ (1 − m/d), β), with q = 1."""
    power = 1 / (1 - params.p)
    kept: float = (1 + params.eta) ** -power * (1 - index) ** (params.p * power)
    return min(params.gamma * (1 - kept), params.beta)


def pq_index(directory: Path, p: float) -> float:
    """I = 1 − d^(1 − 1/p) · ‖w‖_p / ‖w‖_1 of a saved base's linears, one in memory."""
    count, powers, sizes = 0, 0.0, 0.0
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                if name.endswith("_proj.weight"):
                    weights = file.get_tensor(name).double().abs()
                    count += weights.numel()
                    powers += float(weights.pow(p).sum())
                    sizes += float(weights.sum())
    evenness: float = (powers / count) ** (1 / p) / (sizes / count)
    return 1 - evenness


def _round(
    spec: PruneSpec,
    step: Path,
    following: Path,
    before: Round,
    params: UntilStopParams,
    stages: Stages,
    progress: Progress,
) -> Round:
    """Cut and repair, in `step`, the base that is lifted there; lift what comes out."""
    step.mkdir(exist_ok=True)
    shutil.rmtree(following, ignore_errors=True)
    following.mkdir()
    left = (1 - before.target) * (1 - depth(before.index, params))
    target = min(1 - left, targets_of(spec)[-1])
    asked = step_of(spec, target)
    cut_step(asked, step, stages, progress)
    lift_step(asked, step, following)
    return Round(target, pq_index(slim_base(asked, step), params.p))


def _read(found: Path) -> list[Round]:
    path = found / ROUNDS
    return [Round(**r) for r in json.loads(path.read_text())] if path.is_file() else []


def _write(found: Path, rounds: Sequence[Round]) -> None:
    draft = found / f"{ROUNDS}.draft"
    draft.write_text(json.dumps([asdict(r) for r in rounds]))
    os.replace(draft, found / ROUNDS)
