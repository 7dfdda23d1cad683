"""Jobs and their events as the API shows them, after OpenAI's fine_tuning.job."""

from collections.abc import Iterable, Sequence
from typing import Any, Generic, Literal, TypeVar

from dbos import WorkflowStatus
from pydantic import BaseModel, ConfigDict

from pruning.adapters.jobs import AnyAdapterRecipe, AnyAdapterSpec, results
from pruning.errors import InvalidInput
from pruning.jobs.job import Event, EventType, Progress
from pruning.jobs.kinds import ADAPTERS, PRUNING, SWEEPS, kind_of
from pruning.recipe import PruneSpec, Recipe
from pruning.sweeps.recipe import SweepRecipe, SweepSpec
from service.privacy import public

Item = TypeVar("Item", "Job", "JobEvent", "Checkpoint")
Status = Literal["validating_files", "queued", "running", "succeeded", "failed", "cancelled"]
ENDED = ("succeeded", "failed", "cancelled")
PATHS = {
    PRUNING: "/v1/pruning/jobs",
    ADAPTERS: "/v1/adapters/jobs",
    SWEEPS: "/v1/pruning/sweeps",
}
OBJECTS: dict[str, Literal["pruning.job", "adapter.job", "sweep.job"]] = {
    PRUNING.workflow: "pruning.job",
    ADAPTERS.workflow: "adapter.job",
    SWEEPS.workflow: "sweep.job",
}
AnyRecipe = Recipe | AnyAdapterRecipe | SweepRecipe
AnySpec = PruneSpec | AnyAdapterSpec | SweepSpec

_STATUS: dict[str, Status] = {
    "ENQUEUED": "queued",
    "DELAYED": "queued",
    "PENDING": "running",
    "CANCELLED": "cancelled",
}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class JobError(_Frozen):
    """Why a job failed; `param` is the field of the recipe that is to blame, if one is."""

    code: str
    message: str
    param: str | None


class JobResult(_Frozen):
    """What a job made: the digest of its artifact, its report and the models now served."""

    artifact: str
    report: str
    models: tuple[str, ...]


class Job(_Frozen):
    """A job; `progress` is the fraction of the whole that is done, times are Unix seconds.

    `stages` are all that it consists of, `stage` the one that runs.
    `pruned_model`, `result` and `error` are null until the job has ended; the first always is for
    a job on adapters, whose `result.models` name them, and for a sweep, which makes none.
    """

    id: str
    object: Literal["pruning.job", "adapter.job", "sweep.job"] = "pruning.job"
    created_at: int
    started_at: int | None
    finished_at: int | None
    status: Status
    model: str
    pruned_model: str | None
    recipe: AnyRecipe
    stages: tuple[str, ...]
    stage: str | None
    progress: float
    result: JobResult | None
    error: JobError | None
    seed: int
    metadata: dict[str, str] = {}

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED


class JobEvent(_Frozen):
    """One thing that happened to a job."""

    id: str
    object: Literal["pruning.job.event"] = "pruning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    type: EventType
    message: str
    data: dict[str, Any]


class Checkpoint(_Frozen):
    """Where a training looked at its validation rows, after OpenAI's fine_tuning.job.checkpoint.

    `fine_tuned_model_checkpoint` is the model that has these weights: of the checkpoint that was
    kept once the job has succeeded, null for the others.
    """

    id: str
    object: Literal["adapter.job.checkpoint"] = "adapter.job.checkpoint"
    created_at: int
    fine_tuning_job_id: str
    fine_tuned_model_checkpoint: str | None
    step_number: int
    metrics: dict[str, float]  # step, train_loss and valid_loss, in nats per completion token


class Page(_Frozen, Generic[Item]):
    """A stretch of a list; ask for the next one with `after` = `last_id`."""

    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool


def job_object(
    work: WorkflowStatus, publication: WorkflowStatus | None, progress: Progress | None
) -> Job:
    """A job from its two workflows (see pruning.jobs.job) and its latest progress."""
    spec = spec_of(work)
    recipe, status = spec.recipe, status_of(work, publication)
    last = publication or work
    done = status == "succeeded"
    return Job(
        id=work.workflow_id,
        object=OBJECTS[work.name],
        created_at=_seconds(work.created_at) or 0,
        started_at=_seconds(work.dequeued_at),
        finished_at=_seconds(last.completed_at) if status in ENDED else None,
        status=status,
        model=recipe.base,
        pruned_model=recipe.name if done and isinstance(recipe, Recipe) else None,
        recipe=recipe,
        stages=kind_of(work.workflow_id).stages(recipe),
        stage=progress["stage"] if progress and status == "running" else None,
        progress=1.0 if done else progress["fraction"] if progress else 0.0,
        result=_result(work, spec) if done else None,
        error=_error(last.error) if status == "failed" else None,
        seed=recipe.seed,
    )


def status_of(work: WorkflowStatus, publication: WorkflowStatus | None) -> Status:
    """The status of a job from its two workflows (see pruning.jobs.job)."""
    if work.status != "SUCCESS":
        return _STATUS.get(work.status, "failed")
    if publication is None or publication.status in ("PENDING", "ENQUEUED"):
        return "running"
    return "succeeded" if publication.status == "SUCCESS" else "failed"


def event_object(job: str, offset: int | str, event: Event) -> JobEvent:
    """An entry of a job's stream; its id tells the offset."""
    return JobEvent(id=f"pruneevent-{job.removeprefix('prunejob-')}-{offset}", **event)


def offset_of(event: str) -> int:
    """The offset in the stream that an event's id tells; InvalidInput when it tells none."""
    offset = event.rpartition("-")[2]
    if not offset.isdecimal():
        raise InvalidInput("after", f"there is no event {event!r}")
    return int(offset)


def page_of(items: Sequence[Item], has_more: bool) -> Page[Item]:
    """A page with these items."""
    return Page(
        data=list(items),
        first_id=items[0].id if items else None,
        last_id=items[-1].id if items else None,
        has_more=has_more,
    )


def checkpoints_of(job: Job, events: Iterable[JobEvent], best_step: int | None) -> list[Checkpoint]:
    """Those that events tell of, the newest first; the model is of `best_step`."""
    (model,) = job.result.models if job.result else (None,)
    told = {int(event.data["step"]): event for event in events if event.type == "metrics"}
    return [
        Checkpoint(
            id=f"ftckpt-{job.id}-{step}",
            created_at=event.created_at,
            fine_tuning_job_id=job.id,
            fine_tuned_model_checkpoint=model if step == best_step else None,
            step_number=step,
            metrics={name: event.data[name] for name in ("step", "train_loss", "valid_loss")},
        )
        for step, event in sorted(told.items(), reverse=True)
    ]


def last_event(job: Job) -> JobEvent:
    """The event that every ended job closes with."""
    end: Event = {
        "created_at": job.finished_at or job.created_at,
        "level": "error" if job.error else "info",
        "type": "message",
        "message": f"job {job.status}: {job.error.message}" if job.error else f"job {job.status}",
        "data": {"status": job.status},
    }
    return event_object(job.id, "end", end)


def spec_of(work: WorkflowStatus) -> AnySpec:
    """The spec that a job was created with."""
    assert work.input is not None
    known = kind_of(work.workflow_id).spec
    spec: AnySpec = known.validate_python(work.input["args"][0])
    return spec


def _models(spec: AnySpec) -> tuple[str, ...]:
    """What a job makes, as requests name it."""
    if isinstance(spec, SweepSpec):
        return ()
    if not isinstance(spec, PruneSpec):
        return tuple(f"{spec.recipe.base}+{name}" for name in results(spec.recipe))
    name = spec.recipe.name
    return (name, *(f"{name}+{adapter}" for adapter in sorted(spec.adapters)))


def _result(work: WorkflowStatus, spec: AnySpec) -> JobResult:
    assert work.output is not None
    path = PATHS[kind_of(work.workflow_id)]
    return JobResult(
        artifact=work.output["artifact"],
        report=f"{path}/{work.workflow_id}/report",
        models=_models(spec),
    )


def _error(error: Exception | None) -> JobError:
    """What the worker said to the job's owner, and nothing of what it did not mean to say."""
    if getattr(error, "name", None) == "JobFailed":
        data: Any = getattr(error, "data", None) or {}
        return JobError(
            code=str(getattr(error, "code", "job_failed")),
            message=public(str(error)),
            param=data.get("param"),
        )
    return JobError(
        code="internal_error",
        message="the job failed unexpectedly; the worker's log tells more",
        param=None,
    )


def _seconds(milliseconds: int | None) -> int | None:
    return None if milliseconds is None else milliseconds // 1000
