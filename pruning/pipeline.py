"""The whole method on one page: a dense base and its adapters in, slim ones and a report out.

Each stage reads what earlier ones wrote below the job's work directory and writes WORK/STAGE/.
Same spec, same bytes (reports aside, which tell times); a stage may be run again at any time, and
finds in WORK/STAGE.state what a kill left of its work, see jobs/stage.py.
"""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pruning import fleet, hidden
from pruning.adapters.carry import Cut, carry
from pruning.allocation import budget
from pruning.allocation.solve import problem, solve
from pruning.approach import aimed, approach, share_of, targets_of
from pruning.calibration import collect_into
from pruning.export import slim_config
from pruning.geometry import Geometry
from pruning.importance import score_layers
from pruning.jobs.outputs import LATENCY, SCORES, base_to_cut, shared, slim_base, timed
from pruning.jobs.resuming import kept_in
from pruning.methods import resolve
from pruning.methods.entry import Statistic
from pruning.plan import Plan
from pruning.progress import Progress, part
from pruning.recipe import PruneSpec, Recipe
from pruning.registry import RecoveryContext, recovery
from pruning.repair import repair
from pruning.slicing import slice_base
from pruning.statistics.hidden import HiddenChannels, watch
from pruning.stats import Statistics
from pruning.subset import subset
from pruning.text import calibration_ids, check_length, load_tokenizer, name_tokenizer
from pruning.weights.checkpoint import Checkpoint

SEQUENCES = "sequences.safetensors"  # what calibrated, as token ids
TOKENIZER = "tokenizer_class"  # what it was tokenized with
HIDDEN = "hidden.safetensors"  # what it showed of the hidden state, if that becomes narrower

Stage = Callable[[PruneSpec, Path, Progress], None]


def schedule(spec: PruneSpec, work: Path, progress: Progress) -> None:
    """Make the earlier cuts, if the schedule has more than one."""
    begin(work, "schedule")
    check(spec, Checkpoint(spec.base))
    approach(spec, work, STAGES, progress)


def calibrate(
    spec: PruneSpec, work: Path, progress: Progress, also: frozenset[Statistic] = frozenset()
) -> None:
    """Check the recipe against the base, then collect the statistics that its methods need.

    `also` are those of other recipes that are to share them.
    """
    out = begin(work, "calibrate")
    recipe, checkpoint = spec.recipe, Checkpoint(base_to_cut(spec, work))
    check(spec, checkpoint)
    needs = needs_of(recipe) | also
    own = part(progress, 0, 1 / (1 + len(spec.adapters))) if recipe.fleet else progress
    _measure_latency(checkpoint, recipe, out, progress)
    path, ids_ST = out / "statistics.safetensors", _sequences(spec, out, progress)
    save_file({"ids": ids_ST}, out / SEQUENCES)
    if recipe.hidden_size:
        watch(checkpoint, ids_ST, out, part(progress, 0, 0.1)).save(out / HIDDEN)
    state = _state(spec, work, "calibrate")
    collect_into(path, checkpoint, ids_ST, needs, recipe.sink_tokens, state / "base", own)
    if recipe.fleet:
        rest = part(progress, 1 / (1 + len(spec.adapters)), 1)
        entry, params = resolve("criterion", recipe.criterion)
        own_needs = entry.needs | params.needs
        fleet.calibrate(spec, own_needs, ids_ST, out / "fleet", state / "fleet", rest)


def needs_of(recipe: Recipe) -> frozenset[Statistic]:
    """The statistics of the base that the methods of a recipe need."""
    means = frozenset[Statistic]({"input_moments"} if recipe.bias_compensation else ())
    repairs = (resolve("recovery", method)[0].needs for method in recipe.recovery)
    entry, params = resolve("criterion", recipe.criterion)
    allocation, spread = resolve("allocator", recipe.allocator)
    return means.union(entry.needs, params.needs, allocation.needs, spread.needs, *repairs)


def plan(spec: PruneSpec, work: Path, progress: Progress) -> None:
    """Score every unit, decide how many each layer keeps, and take the best."""
    out = begin(work, "plan")
    recipe = timed(aimed(spec, work).recipe, work)
    checkpoint = Checkpoint(base_to_cut(spec, work))
    budget.check(checkpoint.geometry, recipe)  # a latency can be judged only now
    statistics = _statistics(work)
    scoring, deciding = part(progress, 0, 0.5), part(progress, 0.5, 1)
    known = shared(work, SCORES, _state(spec, work, "plan"))
    if recipe.fleet:
        calibrated = work / "calibrate" / "fleet"
        scores = fleet.scores(spec, statistics, calibrated, known, scoring)
    else:
        scores = score_layers(checkpoint, statistics, recipe, scoring, known)
    ids = partial(_calibration_ids, work)
    chosen = solve(problem(checkpoint, recipe, scores, statistics, ids, deciding))
    if channels := _hidden(work):
        kept = hidden.best(channels.importance_H, recipe.hidden_size or 0)
        chosen = chosen.model_copy(update={"hidden_channels": kept})
    slim_config(checkpoint.config, chosen, recipe.export)  # refuse an impossible export here
    (out / "plan.json").write_text(chosen.model_dump_json() + "\n")


def slice_(spec: PruneSpec, work: Path, progress: Progress) -> None:
    """Write the slim base: the kept rows and columns as smaller dense tensors."""
    out = begin(work, "slice")
    checkpoint, chosen = Checkpoint(base_to_cut(spec, work)), _plan(work)
    config = slim_config(checkpoint.config, chosen, spec.recipe.export)
    seen = _hidden(work)
    energies = seen.energies if seen else None
    slice_base(checkpoint, chosen, config, _statistics(work), out / "model", progress, energies)
    name_tokenizer(out / "model", (work / "calibrate" / TOKENIZER).read_text())


def recover(spec: PruneSpec, work: Path, progress: Progress) -> None:
    """Repair the slim base; an attempt that was killed is taken up where it was."""
    out = begin(work, "recover")
    if not spec.recipe.recovery:
        return
    whole = RecoveryContext(
        spec,
        Checkpoint(base_to_cut(spec, work)),
        _plan(work),
        _statistics(work),
        _calibration_ids(work),
        source=work / "slice" / "model",
        destination=out / "model",
        state=work / "recover.state",
    )
    cuts = len(targets_of(spec))
    bound = [recovery(share_of(method, cuts)) for method in spec.recipe.recovery]
    repair([(method, params) for method, _, params in bound], whole, progress)


def carry_(spec: PruneSpec, work: Path, progress: Progress) -> None:
    """Carry every adapter through the plan."""
    out = begin(work, "carry")
    checkpoint, chosen = Checkpoint(spec.base), _plan(work)
    slim = Geometry.from_config(slim_config(checkpoint.config, chosen, spec.recipe.export))
    cut = Cut(checkpoint.geometry, chosen, slim, spec.recipe.name)
    if spec.adapters and (spec.recipe.carry == "refit" or spec.recipe.carry_distill):
        from pruning.adapters.carrying import carry_all  # as for `evaluate`

        base, ids_ST = slim_base(spec, work), _calibration_ids(work)
        carry_all(spec, cut, base, ids_ST, out / "adapters", work / "carry.state", progress)
        return
    for done, (name, source) in enumerate(sorted(spec.adapters.items())):
        progress(done / len(spec.adapters), f"carrying {name}")
        carry(source, out / "adapters" / name, cut, f"adapters.{name}")


def evaluate(spec: PruneSpec, work: Path, progress: Progress) -> None:
    """Measure the base and its adapters before and after, and write the report."""
    from pruning.reports.measure import measure  # imports seconds' worth of transformers
    from pruning.reports.page import render

    out = begin(work, "evaluate")
    state = _state(spec, work, "evaluate")
    report = measure(spec, work, _plan(work), state, progress)
    (out / "report.json").write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (out / "report.html").write_text(render(report), encoding="utf-8")


STAGES: dict[str, Stage] = {
    "schedule": schedule,
    "calibrate": calibrate,
    "plan": plan,
    "slice": slice_,
    "recover": recover,
    "carry": carry_,
    "evaluate": evaluate,
}


def begin(work: Path, stage: str) -> Path:
    """An empty directory for the stage's outputs; nothing random or order-dependent from here."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic with it
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    shutil.rmtree(work / stage, ignore_errors=True)
    (work / stage).mkdir()
    return work / stage


def _state(spec: PruneSpec, work: Path, stage: str) -> Path:
    """What a kill leaves of a stage's work."""
    return kept_in(work / f"{stage}.state", spec=spec.model_dump_json())


def check(spec: PruneSpec, checkpoint: Checkpoint) -> None:
    """Raise InvalidInput if the recipe cannot be run on this base."""
    recipe = spec.recipe
    budget.check(checkpoint.geometry, recipe)
    check_length(checkpoint.config, recipe.calibration, "calibration")
    if recipe.training:
        check_length(checkpoint.config, recipe.training, "training")
    check_length(checkpoint.config, recipe.evaluation, "evaluation")
    if recipe.fleet:
        recipe.fleet.check(spec.adapters)
        for name, text in recipe.fleet.texts.items():
            check_length(checkpoint.config, text, f"fleet.texts.{name}")


def _measure_latency(checkpoint: Checkpoint, recipe: Recipe, out: Path, progress: Progress) -> None:
    """Leave measured times where `timed` looks for them, if the recipe is about a latency."""
    if recipe.size and recipe.size.latency_ms:
        from pruning import latency  # as for `evaluate`

        found = recipe.size.table or latency.table(checkpoint, recipe, part(progress, 0, 0.1))
        (out / LATENCY).write_text(found.model_dump_json() + "\n")


def _sequences(spec: PruneSpec, out: Path, progress: Progress) -> Tensor:
    """The calibration sequences: drawn, or selected from a pool that is drawn."""
    text, seed, tokenizer = spec.recipe.calibration, spec.recipe.seed, load_tokenizer(spec.base)
    (out / TOKENIZER).write_text(type(tokenizer).__name__)
    if text.select == "random":
        return calibration_ids(tokenizer, spec.calibration, text, seed)
    pool = text.model_copy(update={"sequences": max(text.pool, text.sequences)})
    pool_ST = calibration_ids(tokenizer, spec.calibration, pool, seed)
    return subset(Checkpoint(spec.base), pool_ST, text, seed, out, progress)


def _calibration_ids(work: Path) -> Tensor:
    """The sequences that `calibrate` drew."""
    ids_ST: Tensor = load_file(work / "calibrate" / SEQUENCES)["ids"]
    return ids_ST


def _statistics(work: Path) -> Statistics:
    return Statistics.load(work / "calibrate" / "statistics.safetensors")


def _hidden(work: Path) -> HiddenChannels | None:
    path = work / "calibrate" / HIDDEN
    return HiddenChannels.load(path) if path.is_file() else None


def _plan(work: Path) -> Plan:
    return Plan.model_validate_json((work / "plan" / "plan.json").read_bytes())
