"""A sweep on one page: the stages of jobs, for many recipes on one base, with what they share.

What several cells need is made first, each thing once: WORK/calibrate/N for those that calibrate
alike, with the statistics of all of them, and WORK/reference/N, the dense base measured.  Then
each cell runs through the other stages of a job in a directory that is given these, and leaves
what was measured; the directory goes.  A kill costs what it would cost the one cell's own job.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pruning import pipeline
from pruning.artifacts import Parents, seal
from pruning.digest import file_digest, tree_digest
from pruning.errors import InvalidInput
from pruning.jobs import stage
from pruning.jobs.kinds import PRUNING, stages_of
from pruning.jobs.outputs import REFERENCE, SCORES, slim_base
from pruning.jobs.resuming import kept_in
from pruning.methods.entry import Statistic
from pruning.progress import Progress, part
from pruning.recipe import PruneSpec, Recipe
from pruning.reports.report import Citation, Report, timings
from pruning.sweeps import sharing
from pruning.sweeps.page import render
from pruning.sweeps.recipe import SweepSpec
from pruning.sweeps.report import FailedCell, SweepReport, cell_of, compared, dense_of
from pruning.weights.checkpoint import Checkpoint
from pruning.weights.header import tensor_bytes

LATENCY = "latency_ms"  # of the dense base, in WORK/reference

Stage = Callable[[SweepSpec, Path, Progress], None]


class Outcome(BaseModel):
    """What became of a cell: the report of a job and maybe a latency, or why it failed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    report: Report | None = None
    weight_bytes: int = 0
    latency_ms: float | None = None
    failed: FailedCell | None = None


def calibrate(spec: SweepSpec, work: Path, progress: Progress) -> None:
    """Check every cell against the base, then calibrate once for all that calibrate alike."""
    out, state = pipeline.begin(work, "calibrate"), _state(spec, work, "calibrate")
    checkpoint = Checkpoint(spec.base)
    for number, cell in enumerate(spec.cells):
        try:
            pipeline.check(cell, checkpoint)
        except InvalidInput as error:
            raise spec.recipe.blamed(error, number) from error
    groups = sharing.groups(spec.cells, sharing.calibration)
    for i, group in enumerate(groups):
        folder, finished = state / str(i), state / f"{i}.done"
        folder.mkdir(exist_ok=True)
        if not finished.exists():
            needs = _needs(spec.cells[n].recipe for n in group)
            share = part(progress, i / len(groups), (i + 1) / len(groups))
            pipeline.calibrate(spec.cells[group[0]], folder, share, also=needs)
            shutil.rmtree(folder / "calibrate.state")
            finished.touch()
        _link(folder, out / folder.name)


def reference(spec: SweepSpec, work: Path, progress: Progress) -> None:
    """Measure the dense base once for all cells that carry the same adapters."""
    from pruning.latency import decode_ms  # imports seconds' worth of transformers and peft
    from pruning.reports.measure import reference as measured

    out, state = pipeline.begin(work, "reference"), _state(spec, work, "reference")
    groups = sharing.groups(spec.cells, sharing.reference)
    for i, group in enumerate(groups):
        folder = state / str(i)
        measured(
            spec.cells[group[0]], folder, part(progress, i / len(groups), (i + 1) / len(groups))
        )
        _link(folder, out / folder.name)
    if spec.recipe.latency:
        taken = decode_ms(spec.base, spec.recipe.latency.size)
        (out / LATENCY).write_text(json.dumps(taken) + "\n")


def cells(spec: SweepSpec, work: Path, progress: Progress) -> None:
    """Make and measure every cell, one after the other, and compare them."""
    out, state = pipeline.begin(work, "cells"), _state(spec, work, "cells")
    folders = _Shared(spec, work, state)
    for number in range(len(spec.cells)):
        finished = state / f"{number}.json"
        if not finished.is_file():
            outcome = _outcome(spec, number, folders.of(number), _of_cell(progress, spec, number))
            (state / "draft").write_text(outcome.model_dump_json(), encoding="utf-8")
            (state / "draft").rename(finished)
        shutil.rmtree(state / str(number), ignore_errors=True)
    report = _report(spec, work, [_read(state / f"{n}.json") for n in range(len(spec.cells))])
    (out / "report.json").write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (out / "report.html").write_text(render(report), encoding="utf-8")
    lasting = report.model_dump(mode="json", include={"recipe", "front", "failed"})
    lasting["cells"] = [
        cell.model_dump(mode="json", exclude={"seconds", "latency_ms"}) for cell in report.cells
    ]
    (out / "sweep.json").write_text(json.dumps(lasting, indent=2) + "\n", encoding="utf-8")


def publish(spec: SweepSpec, work: Path, progress: Progress) -> None:
    """Seal what was measured as an artifact in WORK/publish."""
    draft = pipeline.begin(work, "publish")
    for path in (work / "cells").iterdir():
        os.link(path, draft / path.name)
    adapters = {name: path for cell in spec.cells for name, path in cell.adapters.items()}
    texts = {place: path for cell in spec.cells for place, path in cell.parts.items()}
    parents = Parents(
        base=tree_digest(spec.base),
        adapters={name: tree_digest(path) for name, path in adapters.items()},
        texts={place: file_digest(path) for place, path in texts.items()},
    )
    seal(draft, spec.recipe, parents)


STAGES: dict[str, Stage] = {
    "calibrate": calibrate,
    "reference": reference,
    "cells": cells,
    "publish": publish,
}


class _Shared:
    """Directories for cells, with links to what others made for them."""

    def __init__(self, spec: SweepSpec, work: Path, state: Path):
        self._spec, self._state = spec, state
        made: dict[str, tuple[sharing.Key, Callable[[int], Path]]] = {
            "calibrate": (sharing.calibration, lambda i: work / "calibrate" / str(i) / "calibrate"),
            REFERENCE: (sharing.reference, lambda i: work / "reference" / str(i)),
            SCORES: (sharing.scores, lambda i: state / f"{SCORES}-{i}"),
        }
        self._links: dict[int, dict[str, Path]] = {n: {} for n in range(len(spec.cells))}
        for name, (key, place) in made.items():
            for i, group in enumerate(sharing.groups(spec.cells, key)):
                for number in group:
                    self._links[number][name] = place(i)

    def of(self, number: int) -> Path:
        """The directory of a cell, ready for the first of its own stages, or the next."""
        folder = self._state / str(number)
        folder.mkdir(exist_ok=True)
        (folder / "spec.json").write_text(self._spec.cells[number].model_dump_json())
        for name, place in self._links[number].items():
            place.mkdir(exist_ok=True)
            if not (folder / name).exists():
                (folder / name).symlink_to(place.absolute())
        return folder


def _needs(recipes: Iterable[Recipe]) -> frozenset[Statistic]:
    return frozenset(need for recipe in recipes for need in pipeline.needs_of(recipe))


def _outcome(spec: SweepSpec, number: int, folder: Path, progress: Progress) -> Outcome:
    """Run the stages of a cell's job that are not done; what it cannot do is an outcome, too."""
    cell = spec.cells[number]
    try:
        _make(cell, folder, progress)
    except InvalidInput as error:
        told = spec.recipe.blamed(error, number)
        changes = spec.recipe.changes()[number]
        failed = FailedCell(number=number, changes=changes, param=told.field, message=error.message)
        return Outcome(failed=failed)
    report = Report.model_validate_json((folder / "evaluate" / "report.json").read_bytes())
    slim = slim_base(cell, folder)
    made = Outcome(report=report, weight_bytes=tensor_bytes(slim / "model.safetensors"))
    if spec.recipe.latency is None:
        return made
    from pruning.latency import decode_ms  # as for `reference`

    return made.model_copy(update={"latency_ms": decode_ms(slim, spec.recipe.latency.size)})


def _make(cell: PruneSpec, folder: Path, progress: Progress) -> None:
    given = {"calibrate", "publish"} if (folder / "calibrate").is_symlink() else {"publish"}
    own = [name for name in stages_of(cell.recipe) if name not in given]
    for i, name in enumerate(own):
        started, timing = time.monotonic(), folder / f"{name}.timing.json"
        share = part(progress, i / len(own), (i + 1) / len(own))
        stage.run(name, folder, PRUNING.workflow, PRUNING.pipeline, share)
        if not timing.exists():
            seconds = round(time.monotonic() - started, 3)
            usage = {"seconds": seconds, "peak_rss_bytes": stage.peak_rss_bytes()}
            timing.write_text(json.dumps(usage) + "\n")


def _of_cell(progress: Progress, spec: SweepSpec, number: int) -> Progress:
    count = len(spec.cells)
    share = part(progress, number / count, (number + 1) / count)
    return lambda fraction, message: share(fraction, f"cell {number + 1} of {count}: {message}")


def _report(spec: SweepSpec, work: Path, outcomes: list[Outcome]) -> SweepReport:
    """The report; InvalidInput, that of the first cell, where none could be made."""
    failed = tuple(outcome.failed for outcome in outcomes if outcome.failed)
    reports = {n: o.report for n, o in enumerate(outcomes) if o.report}
    if not reports:
        raise InvalidInput(failed[0].param, failed[0].message)
    found, best = compared(
        cell_of(n, spec.recipe, report, outcomes[n].weight_bytes, outcomes[n].latency_ms)
        for n, report in reports.items()
    )
    first, latency = next(iter(reports.values())), work / "reference" / LATENCY
    dense_ms = json.loads(latency.read_text()) if latency.is_file() else None
    return SweepReport(
        recipe=spec.recipe,
        dense=dense_of(spec.recipe, first, tensor_bytes(*Checkpoint(spec.base).shards), dense_ms),
        cells=found,
        failed=failed,
        front=best,
        shared=timings(work, ("calibrate", "reference")),
        evaluation_tokens=first.evaluation_tokens,
        probe_tokens=first.probe_tokens,
        methods=_methods(reports.values()),
        versions=first.versions,
    )


def _methods(reports: Iterable[Report]) -> tuple[Citation, ...]:
    """The papers of all methods that were used, each once."""
    return tuple(dict.fromkeys(cited for report in reports for cited in report.methods))


def _read(path: Path) -> Outcome:
    return Outcome.model_validate_json(path.read_bytes())


def _link(made: Path, place: Path) -> None:
    shutil.copytree(made, place, copy_function=os.link)


def _state(spec: SweepSpec, work: Path, name: str) -> Path:
    """What a kill leaves of a stage's work."""
    return kept_in(work / f"{name}.state", spec=spec.model_dump_json())
