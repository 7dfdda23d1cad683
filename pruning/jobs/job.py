"""What the gateway and the worker agree on about a job in the job database (torch-free).

A job is two workflows.  The first runs the stages; the moment it is recorded as successful is the
moment after which the job can no longer be cancelled, because the database admits only one of
"success" and "cancelled".  Only then does the second, PUBLICATION, make the artifact visible.
"""

from typing import Any, Literal, TypedDict

from dbos import DBOSPortableJSONSerializer

from pruning.errors import InvalidInput

QUEUE = "pruning"
PUBLICATION = "publish"
EVENTS = "events"  # the stream of a job's events
PROGRESS = "progress"  # the latest progress, as a DBOS event
VERSION = "2"  # of the workflows' steps: a job resumes only where it means the same steps
ACTIVE = ("ENQUEUED", "DELAYED", "PENDING")  # states of a workflow that has not ended
SERIALIZER = DBOSPortableJSONSerializer()


# metrics: progress with numbers, which are told every time
EventType = Literal["message", "progress", "metrics", "stage"]


class Event(TypedDict):
    """An entry of the stream EVENTS; `created_at` in Unix seconds."""

    created_at: int
    level: Literal["info", "warn", "error"]
    type: EventType
    message: str
    data: dict[str, Any]


class Progress(TypedDict):
    """How far a job is: `fraction` of the whole job, 0 to 1."""

    stage: str
    fraction: float
    message: str


class JobFailed(Exception):
    """Why a job failed, in words for its owner; `code` and `data` survive the job database."""

    def __init__(self, code: str, message: str, param: str | None = None):
        super().__init__(message)
        self.code = code
        self.data = {"param": param}

    @classmethod
    def from_input(cls, error: InvalidInput) -> "JobFailed":
        return cls(error.code, error.message, error.field)


def publication(job: str) -> str:
    """The id of the workflow that publishes a job's artifact."""
    return f"{job}-publication"
