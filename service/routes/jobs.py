"""Jobs on bases and on adapters: create, look up, follow, cancel, as OpenAI's fine-tuning jobs."""

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Annotated, Literal

import anyio
from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Query
from fastapi.responses import FileResponse, Response, StreamingResponse

from pruning.adapters.jobs import AdapterRecipe
from pruning.jobs.kinds import ADAPTERS, PRUNING, SWEEPS, Kind
from pruning.recipe import Recipe
from pruning.sweeps.choice import Choice
from pruning.sweeps.recipe import SweepRecipe
from service.dependencies import JobsDep, require
from service.errors import NotFound
from service.job_objects import PATHS, Checkpoint, Job, JobEvent, Page
from service.jobs import Jobs

pruning = APIRouter(prefix=PATHS[PRUNING], tags=["jobs"])
adapters = APIRouter(prefix=PATHS[ADAPTERS], tags=["jobs"])
sweeps = APIRouter(prefix=PATHS[SWEEPS], tags=["jobs"])

Limit = Annotated[int, Query(ge=1, le=100)]
Key = Annotated[str | None, Header(min_length=1, max_length=255)]

_POLL_SECONDS = 0.5
_HEARTBEAT_SECONDS = 15.0


def _own(kind: Kind) -> Callable[[str], str]:
    """The id in a path, where it is that of a job of this kind."""

    def own(id: str) -> str:
        if not id.startswith(kind.prefix):
            raise NotFound(f"job {id!r} does not exist", param="id")
        return id

    return own


AdapterJobId = Annotated[str, Depends(_own(ADAPTERS))]
SweepId = Annotated[str, Depends(_own(SWEEPS))]


@pruning.post("")
def prune(recipe: Recipe, jobs: JobsDep, idempotency_key: Key = None) -> Job:
    """Prune a base and carry its adapters; the same Idempotency-Key again is the same job."""
    return jobs.create(recipe, idempotency_key)


@adapters.post("")
def make_adapters(recipe: AdapterRecipe, jobs: JobsDep, idempotency_key: Key = None) -> Job:
    """Train, merge, compress, profile or compare adapters; train a generator, or ask one.

    The same Idempotency-Key is the same job.
    """
    return jobs.create(recipe, idempotency_key)


@sweeps.post("")
def sweep(recipe: SweepRecipe, jobs: JobsDep, idempotency_key: Key = None) -> Job:
    """Try every cell of a grid and compare them; the same Idempotency-Key is the same job."""
    return jobs.create(recipe, idempotency_key)


@sweeps.post("/{id}/jobs")
def choose(id: SweepId, choice: Choice, jobs: JobsDep, idempotency_key: Key = None) -> Job:
    """Start the pruning job of the cell of a sweep that fits best within a limit."""
    return jobs.choose(id, choice, idempotency_key)


@adapters.get("/{id}/checkpoints")
def checkpoints(
    id: AdapterJobId, jobs: JobsDep, limit: Limit = 10, after: str | None = None
) -> Page[Checkpoint]:
    """Where a training has looked at its validation rows, newest first."""
    return jobs.checkpoints(id, limit, after)


def _follow(router: APIRouter, kind: Kind) -> None:
    """The routes that every kind of job has."""
    Id = Annotated[str, Depends(_own(kind))]

    @router.get("")
    def list_jobs(jobs: JobsDep, limit: Limit = 20, after: str | None = None) -> Page[Job]:
        """Jobs, newest first."""
        return jobs.list(kind, limit, after)

    @router.get("/{id}")
    def get(id: Id, jobs: JobsDep) -> Job:
        """A job as it stands."""
        return jobs.get(id)

    @router.get("/{id}/events", response_model=Page[JobEvent])
    def events(
        id: Id,
        jobs: JobsDep,
        limit: Limit = 20,
        after: str | None = None,
        stream: bool = False,
        accept: Annotated[str, Header()] = "",
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> Page[JobEvent] | StreamingResponse:
        """What happened to a job, oldest first; with `stream`, as server-sent events to its end."""
        if not stream and "text/event-stream" not in accept:
            return jobs.events(id, limit, after)
        after = last_event_id or after
        jobs.events(id, 1, after)  # its errors are answers; once the stream runs it is too late
        return StreamingResponse(_stream(jobs, id, after), media_type="text/event-stream")

    @router.post("/{id}/cancel")
    def cancel(id: Id, jobs: JobsDep) -> Job:
        """End a job at once; nothing of it remains."""
        return jobs.cancel(id)

    @router.get("/{id}/report", response_class=Response)
    def report(id: Id, jobs: JobsDep, format: Literal["json", "html"] = "json") -> FileResponse:
        """What was measured before and after."""
        media_type = {"json": "application/json", "html": "text/html"}[format]
        return FileResponse(jobs.report(id, format), media_type=media_type)


_follow(pruning, PRUNING)
_follow(adapters, ADAPTERS)
_follow(sweeps, SWEEPS)
router = APIRouter(dependencies=[require("jobs")])
router.include_router(pruning)
router.include_router(adapters)
router.include_router(sweeps)


async def _stream(jobs: Jobs, id: str, after: str | None) -> AsyncIterator[str]:
    silent = 0.0
    while True:
        has_ended = (await to_thread.run_sync(jobs.get, id)).has_ended
        page = await to_thread.run_sync(partial(jobs.events, id, limit=100, after=after))
        for event in page.data:
            yield f"id: {event.id}\ndata: {event.model_dump_json()}\n\n"
        if has_ended and not page.has_more:
            break
        silent = 0.0 if page.data else silent + _POLL_SECONDS
        if silent >= _HEARTBEAT_SECONDS:
            yield ": still there\n\n"
            silent = 0.0
        after = page.last_id or after
        await anyio.sleep(_POLL_SECONDS)
    yield "data: [DONE]\n\n"
