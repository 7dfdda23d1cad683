"""Jobs: created, looked up and cancelled in the job database that workers read (DBOS)."""

import copy
import hashlib
import itertools
import json
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self, get_args

from dbos import DBOS, DBOSClient, EnqueueOptions, WorkflowStatus, error

from pruning.adapters import jobs as adapters
from pruning.adapters.generate.recipes import GenerateRecipe, TrainGeneratorRecipe
from pruning.adapters.jobs import AnyAdapterRecipe, AnyAdapterSpec
from pruning.adapters.train.recipes import TrainRecipe
from pruning.errors import InvalidInput
from pruning.jobs import job as contract
from pruning.jobs.kinds import ADAPTERS, KINDS, PRUNING, SWEEPS, Kind
from pruning.recipe import Recipe
from pruning.sweeps.choice import Choice
from pruning.sweeps.recipe import SweepRecipe
from pruning.sweeps.report import SweepReport
from service.catalog import Catalog
from service.datasets import Datasets
from service.errors import Conflict, NotFound, TooManyRequests
from service.generation import resolve_generation, resolve_training
from service.job_objects import (
    AnyRecipe,
    Checkpoint,
    Job,
    JobEvent,
    Page,
    Status,
    checkpoints_of,
    event_object,
    job_object,
    last_event,
    offset_of,
    page_of,
    spec_of,
    status_of,
)
from service.recipes import resolve, resolve_adapters, resolve_sweep
from service.settings import Settings
from service.tenants import LOCAL
from service.training import resolve_adapter_training

_JOB_SECONDS = 30  # after which it is worth asking whether one has ended


class Jobs:
    """Every method is synchronous and reads the database; nothing is kept in memory."""

    def __init__(self, settings: Settings, catalog: Catalog):
        settings.home.mkdir(parents=True, exist_ok=True)
        DBOS.migrate(settings.database)
        self._client = DBOSClient(
            system_database_url=settings.database, serializer=contract.SERIALIZER
        )
        self._catalog = catalog
        self._datasets = Datasets(settings.datasets, settings.hub)
        self._artifacts = settings.artifacts
        self._tenant = LOCAL
        self._creating = threading.Lock()

    def of(self, tenant: str, catalog: Catalog) -> Self:
        """The same, for a tenant with its catalog."""
        view = copy.copy(self)
        view._tenant, view._catalog = tenant, catalog
        return view

    def close(self) -> None:
        self._client.destroy()

    def create(self, recipe: AnyRecipe, key: str | None = None) -> Job:
        """Enqueue a recipe; the same idempotency key and recipe again is the same job.

        Raises InvalidInput for a recipe that cannot be run; Conflict when the key was used for
        another recipe, or the name is taken or about to be; TooManyRequests or QuotaExceeded when
        the tenant has as much as it may.
        """
        kind = _kind_of(recipe)
        id = kind.prefix + (_hash(self._tenant, key) if key else secrets.token_hex(12))
        if existing := self._find(id):
            return self._same(existing, recipe)
        if isinstance(recipe, Recipe):
            whole = resolve(recipe, self._catalog, self._datasets)
            spec, makes = whole.model_dump(mode="json"), recipe.name
        elif isinstance(recipe, SweepRecipe):
            sweep = resolve_sweep(recipe, self._catalog, self._datasets)
            spec, makes = sweep.model_dump(mode="json"), f"sweep {recipe.name}"
        else:
            resolved = self._resolved(recipe)
            spec = resolved.model_dump(mode="json")
            makes = adapters.makes(recipe)
        options: EnqueueOptions = {
            "workflow_name": kind.workflow,
            "queue_name": contract.QUEUE,
            "workflow_id": id,
            "deduplication_id": f"{self._tenant}/{makes}",
            "attributes": {"created_ns": time.time_ns(), "tenant": self._tenant},
        }
        try:
            with self._creating:  # so that no other job comes between the count and this one
                self._check_quota()
                self._client.enqueue(options, spec | {"tenant": self._tenant})
            self._catalog.note("job.create", id)
        except error.DBOSQueueDeduplicatedError:
            if self._find(id) is None:
                raise Conflict(
                    f"another job is making {makes!r}; cancel it or choose another name",
                    param="name",
                ) from None
        return self._same(self._one(id), recipe)

    def open(self) -> int:
        """How many jobs of the tenant have not ended."""
        names = [kind.workflow for kind in KINDS]
        known = self._client.list_workflows(
            name=names, status=list(contract.ACTIVE), load_input=False, load_output=False
        )
        return sum(_owner(work) == self._tenant for work in known)

    def in_use(self) -> str:
        """All that unfinished jobs of every tenant were given, as text: digests, paths, ids."""
        known = self._client.list_workflows(status=list(contract.ACTIVE), load_output=False)
        return json.dumps([(work.workflow_id, work.input) for work in known], default=str)

    def _check_quota(self) -> None:
        quota = self._catalog.quota()
        if (most := quota.concurrent_jobs) is not None and self.open() >= most:
            raise TooManyRequests(
                f"{most} jobs of the tenant have not ended; wait for one, or cancel it",
                retry_after=_JOB_SECONDS,
            )
        self._catalog.check_room()

    def _resolved(self, recipe: AnyAdapterRecipe) -> AnyAdapterSpec:
        if isinstance(recipe, TrainGeneratorRecipe):
            return resolve_training(recipe, self._catalog, self._datasets)
        if isinstance(recipe, GenerateRecipe):
            return resolve_generation(recipe, self._catalog, self._datasets)
        if isinstance(recipe, TrainRecipe):
            return resolve_adapter_training(recipe, self._catalog, self._datasets)
        return resolve_adapters(recipe, self._catalog, self._datasets)

    def get(self, id: str) -> Job:
        """A job as it stands; NotFound for an unknown id."""
        return self._object(self._one(id))

    def list(self, kind: Kind, limit: int = 20, after: str | None = None) -> Page[Job]:
        """Jobs of a kind, newest first."""
        known = [work for work in self._known(kind) if _owner(work) == self._tenant]
        ids = [work.workflow_id for work in sorted(known, key=_created, reverse=True)]
        if after is not None and after not in ids:
            raise InvalidInput("after", f"there is no job {after!r}")
        start = 0 if after is None else ids.index(after) + 1
        jobs = [self.get(id) for id in ids[start : start + limit]]
        return page_of(jobs, has_more=start + limit < len(ids))

    def events(self, id: str, limit: int = 20, after: str | None = None) -> Page[JobEvent]:
        """What happened to a job, oldest first; an ended job's last event says how it ended."""
        job = self.get(id)  # before its stream: that of an ended job is complete
        if after is not None and after == last_event(job).id:
            return page_of([], has_more=False)
        start = 0 if after is None else offset_of(after) + 1
        events = list(itertools.islice(self._stream(id, start), limit + 1))
        if job.has_ended and len(events) <= limit:
            events.append(last_event(job))
        return page_of(events[:limit], has_more=len(events) > limit)

    def checkpoints(self, id: str, limit: int = 10, after: str | None = None) -> Page[Checkpoint]:
        """Where a training has looked at its validation rows, newest first; others have none."""
        job = self.get(id)
        if not isinstance(job.recipe, TrainRecipe):
            return page_of(list[Checkpoint](), has_more=False)
        best = None
        if job.result:
            best = json.loads(self.report(id, "json").read_bytes())["best_step"]
        known = checkpoints_of(job, self._stream(id, 0), best)
        start = 0
        if after is not None:
            ids = [one.id for one in known]
            if after not in ids:
                raise InvalidInput("after", f"there is no checkpoint {after!r}")
            start = ids.index(after) + 1
        return page_of(known[start : start + limit], has_more=start + limit < len(known))

    def counts(self, own: bool = False) -> dict[Status, int]:
        """How many jobs there are of each status, of all tenants or only of one's own."""
        publications = {
            work.workflow_id: work
            for work in self._client.list_workflows(
                name=contract.PUBLICATION, load_input=False, load_output=False
            )
        }
        statuses = [
            status_of(work, publications.get(contract.publication(work.workflow_id)))
            for kind in KINDS
            for work in self._known(kind)
            if not own or _owner(work) == self._tenant
        ]
        return {status: statuses.count(status) for status in get_args(Status)}

    def cancel(self, id: str) -> Job:
        """End a job that is queued or running; Conflict when it has ended or is being published."""
        self._one(id)
        self._client.cancel_workflow(id)
        work = self._one(id)
        if work.status != "CANCELLED":
            raise Conflict(f"job {id} can no longer be cancelled", param="id")
        self._catalog.note("job.cancel", id)
        return self._object(work)

    def report(self, id: str, format: str) -> Path:
        """The file with the report of a job that succeeded: `format` is json or html."""
        job = self.get(id)
        if job.result is None:
            raise NotFound(f"job {id} is {job.status}; only a job that succeeded has a report")
        path = self._artifacts / job.result.artifact / f"report.{format}"
        if not path.is_file():
            raise NotFound(f"the report of job {id} is not written as {format}")
        return path

    def choose(self, sweep: str, choice: Choice, key: str | None = None) -> Job:
        """Start the job of the cell of a sweep that fits best.

        Raises as `create` does, NotFound where the sweep has not succeeded, and InvalidInput that
        names the nearest cell where none fits.
        """
        report = SweepReport.model_validate_json(self.report(sweep, "json").read_bytes())
        return self.create(choice.recipe(report), key)

    def _known(self, kind: Kind) -> Sequence[WorkflowStatus]:
        return self._client.list_workflows(name=kind.workflow, load_input=False, load_output=False)

    def _stream(self, id: str, start: int) -> Iterator[JobEvent]:
        stream = self._client.read_stream(id, contract.EVENTS, offset=start, timeout_seconds=0)
        try:
            for offset, event in enumerate(stream, start):
                yield event_object(id, offset, event)
        except error.DBOSStreamTimeoutError:
            return  # that is all so far

    def _object(self, work: WorkflowStatus) -> Job:
        publication = self._workflow(contract.publication(work.workflow_id))
        progress = self._client.get_event(work.workflow_id, contract.PROGRESS, 0)
        return job_object(work, publication, progress)

    def _same(self, work: WorkflowStatus, recipe: AnyRecipe) -> Job:
        if spec_of(work).recipe != recipe:
            raise Conflict("this Idempotency-Key was used for another recipe")
        return self._object(work)

    def _one(self, id: str) -> WorkflowStatus:
        if (work := self._find(id)) is None:
            raise NotFound(f"job {id!r} does not exist", param="id")
        return work

    def _find(self, id: str) -> WorkflowStatus | None:
        work = self._workflow(id)
        if work is None or work.name not in {kind.workflow for kind in KINDS}:
            return None
        return work if _owner(work) == self._tenant else None

    def _workflow(self, id: str) -> WorkflowStatus | None:
        return next(iter(self._client.list_workflows(workflow_ids=[id])), None)


def _kind_of(recipe: AnyRecipe) -> Kind:
    if isinstance(recipe, SweepRecipe):
        return SWEEPS
    return PRUNING if isinstance(recipe, Recipe) else ADAPTERS


def _hash(tenant: str, key: str) -> str:
    return hashlib.sha256(f"{tenant}\0{key}".encode()).hexdigest()[:24]


def _owner(work: WorkflowStatus) -> str:
    return str((work.attributes or {}).get("tenant", LOCAL))


def _created(work: WorkflowStatus) -> tuple[int, str]:
    assert work.attributes is not None
    return work.attributes["created_ns"], work.workflow_id
