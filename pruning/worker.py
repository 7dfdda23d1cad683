"""The worker: runs recipes as durable workflows of resumable stages (DBOS).

A stage is a step: killed in the middle, a job resumes at that stage when a worker starts again.
Nothing needs a graceful end, so stopping is the same as crashing.
"""

import contextvars
import fcntl
import itertools
import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dbos import DBOS, SetWorkflowID, WorkflowHandle, error

from pruning import artifacts
from pruning.adapters.jobs import AnyAdapterSpec
from pruning.errors import InvalidInput
from pruning.jobs import job
from pruning.jobs.job import JobFailed
from pruning.jobs.kinds import KINDS, Kind, kind_of
from pruning.jobs.runner import Cancelled, Runner
from pruning.progress import Progress, numbers
from pruning.recipe import PruneSpec
from pruning.sweeps.recipe import SweepSpec

log = logging.getLogger(__name__)

Publish = Callable[[PruneSpec | AnyAdapterSpec | SweepSpec, Path, str], None]

_PROGRESS_SECONDS = 0.5
_PROGRESS_STEP = 0.01  # told when so many seconds have passed,
_PROGRESS_STRIDE = 0.05  # and this at once: short stages are told of as well


@dataclass(frozen=True)
class Workplace:
    """Where a worker works; `jobs` and `artifacts` are folders on one filesystem."""

    database: str
    artifacts: Path
    jobs: Path


def run(place: Workplace, publish: Publish, runner: Runner | None = None) -> None:
    """Work on jobs until SIGTERM or SIGINT, then end the process.

    `publish(spec, artifact, digest)` makes a finished artifact known; it may be called again with
    the same arguments, and raises InvalidInput when the artifact cannot be registered.
    """
    place.jobs.mkdir(parents=True, exist_ok=True)
    slot = _claim_slot(place.jobs)
    DBOS(
        config={
            "name": "graftwork",
            "system_database_url": place.database,
            "application_version": job.VERSION,
            "executor_id": f"worker-{slot}",
            "serializer": job.SERIALIZER,
            "log_level": "ERROR",
        }
    )
    logging.getLogger("dbos").addFilter(_is_news)
    _register(place, publish, runner or Runner())
    DBOS.launch()
    DBOS.register_queue(
        job.QUEUE, worker_concurrency=1, polling_interval_sec=0.5, on_conflict="always_update"
    )
    _sweep(place.jobs)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    log.info("worker %d is ready", slot)
    stop.wait()
    log.info("worker %d stops; an unfinished job resumes with the next worker", slot)
    logging.shutdown()
    os._exit(0)  # a return would wait for the running stage; it dies with this process


def _register(place: Workplace, publish: Publish, runner: Runner) -> None:
    def run_job(kind: Kind, spec: dict[str, Any]) -> dict[str, str]:
        name = DBOS.workflow_id
        assert name is not None
        work = place.jobs / name
        try:
            own = runner.of(kind)
            stages = kind.stages(kind.spec.validate_python(spec).recipe)
            for stage in stages:
                DBOS.run_step({"name": stage}, _run_stage, own, stages, stage, work, spec)
            digest = DBOS.run_step({"name": "digest"}, _digest, work)
            with SetWorkflowID(job.publication(name)):
                DBOS.start_workflow(publication, name, spec, digest)
        except BaseException as reason:
            # DBOS ends an execution that lost its job, by cancellation or to another worker, with
            # a BaseException; in the second case the directory is the other's.
            if isinstance(reason, Exception) or _is_cancelled(name):
                log.warning("%s ended: %s", name, reason)
                shutil.rmtree(work, ignore_errors=True)
            raise
        return {"artifact": digest}

    def register(kind: Kind) -> None:
        @DBOS.workflow(name=kind.workflow)
        def workflow(spec: dict[str, Any]) -> dict[str, str]:
            return run_job(kind, spec)

    for kind in KINDS:
        register(kind)

    @DBOS.workflow(name=job.PUBLICATION)
    def publication(name: str, spec: dict[str, Any], digest: str) -> None:
        try:
            work: WorkflowHandle[Any] = DBOS.retrieve_workflow(name, existing_workflow=False)
            work.get_result(polling_interval_sec=0.05)
        except error.DBOSAwaitedWorkflowCancelledError:
            shutil.rmtree(place.jobs / name, ignore_errors=True)
            return
        DBOS.run_step({"name": "register"}, _publish, place, publish, name, spec, digest)


def _run_stage(
    runner: Runner, stages: Sequence[str], stage: str, work: Path, spec: dict[str, Any]
) -> dict[str, Any]:
    work.mkdir(exist_ok=True)
    (work / "spec.json").write_text(json.dumps(spec))
    log.info("%s: %s started", work.name, stage)
    _tell("stage", f"{stage} started", {"stage": stage})
    usage = asdict(runner(stage, work, _progress(stages, stage), lambda: _is_cancelled(work.name)))
    _tell("stage", f"{stage} finished", {"stage": stage, **usage})
    return usage


def _digest(work: Path) -> str:
    return artifacts.read(work / "publish").digest


def _publish(
    place: Workplace, publish: Publish, name: str, spec: dict[str, Any], digest: str
) -> None:
    """Make the artifact visible: in the store by a rename, then in the catalog."""
    artifact = place.artifacts / digest
    with artifacts.publishing(place.artifacts):
        is_new = artifacts.publish(place.jobs / name / "publish", place.artifacts, digest)
        try:
            publish(kind_of(name).spec.validate_python(spec), artifact, digest)
        except Exception as reason:
            if is_new:
                shutil.rmtree(artifact, ignore_errors=True)
            if isinstance(reason, InvalidInput):
                raise JobFailed.from_input(reason) from reason
            raise
        finally:
            shutil.rmtree(place.jobs / name, ignore_errors=True)


def _progress(stages: Sequence[str], stage: str) -> Progress:
    """Forwards what a stage says to the job database, but not every word of it."""
    last_time, last_fraction = 0.0, -1.0
    index = stages.index(stage)

    def progress(fraction: float, message: str) -> None:
        nonlocal last_time, last_fraction
        now, measured = time.monotonic(), numbers(message)
        is_late = now - last_time >= _PROGRESS_SECONDS
        step = _PROGRESS_STEP if is_late else _PROGRESS_STRIDE
        if fraction - last_fraction < step and not measured:
            return
        last_time, last_fraction = now, fraction
        whole = round((index + fraction) / len(stages), 4)
        state: job.Progress = {"stage": stage, "fraction": whole, "message": message}
        DBOS.set_event(job.PROGRESS, state)
        said = {"stage": stage, "fraction": fraction, **measured}
        _tell("metrics" if measured else "progress", message, said)

    return progress


def _tell(type: job.EventType, message: str, data: Any) -> None:
    event: job.Event = {
        "created_at": int(time.time()),
        "level": "info",
        "type": type,
        "message": message,
        "data": data,
    }
    DBOS.write_stream(job.EVENTS, event)


def _is_cancelled(name: str) -> bool:
    # in an empty context, so that DBOS does not record the question as a step of the workflow
    status = contextvars.Context().run(DBOS.get_workflow_status, name)
    return status is None or status.status == "CANCELLED"


def _is_news(record: logging.LogRecord) -> bool:
    """Whether DBOS logs anything but the failure or cancellation of a job, which we log."""
    reason = record.exc_info[1] if record.exc_info else None
    return not isinstance(reason, JobFailed | Cancelled | error.DBOSAwaitedWorkflowCancelledError)


def _sweep(jobs: Path) -> None:
    """Remove what is left of jobs that were cancelled while no worker ran."""
    for work in jobs.iterdir():
        states = map(DBOS.get_workflow_status, (work.name, job.publication(work.name)))
        if work.is_dir() and not any(state and state.status in job.ACTIVE for state in states):
            shutil.rmtree(work, ignore_errors=True)


def _claim_slot(jobs: Path) -> int:
    """The first number that no living worker holds; a crashed worker's jobs go by its number."""
    for slot in itertools.count():
        lock = os.open(jobs / f".worker-{slot}", os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return slot
        except BlockingIOError:
            os.close(lock)
    raise AssertionError
