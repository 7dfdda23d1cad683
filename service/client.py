"""A small client of Graftwork's own REST API; completions are for OpenAI's clients."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

Json = dict[str, Any]

_TIMEOUT = httpx.Timeout(30.0, connect=5.0, read=600.0)  # a base is hashed before it is answered
_STREAM_TIMEOUT = httpx.Timeout(30.0, connect=5.0, read=60.0)  # a silent stream has a heartbeat
_JOBS, _ADAPTER_JOBS, _SWEEPS = "/v1/pruning/jobs", "/v1/adapters/jobs", "/v1/pruning/sweeps"
_PATHS = {"adapterjob": _ADAPTER_JOBS, "sweepjob": _SWEEPS}  # of jobs, by what their ids begin with
_ADAPTER_FILES = ("adapter_*", "eval.jsonl", "calibration.jsonl")


class ClientError(Exception):
    """A request that the server refused, or that did not reach it."""


class Unreachable(ClientError):
    """No Graftwork server answered at the address."""


class Refused(ClientError):
    """The server's error; `status` is HTTP's, `code` and `param` are OpenAI's."""

    def __init__(self, status: int, message: str, code: str | None, param: str | None):
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


class Client:
    """One server, by its address; every call raises Unreachable or Refused."""

    def __init__(self, url: str, key: str | None = None):
        """`key` is that of GRAFTWORK_API_KEY where not given; a server without keys needs none."""
        self.url = url.rstrip("/")
        key = key or os.environ.get("GRAFTWORK_API_KEY")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=self.url, timeout=_TIMEOUT, headers=headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    # bases

    def bases(self) -> list[Json]:
        return self._list("/v1/bases")

    def add_base(self, name: str, path: Path, serve: bool = True) -> Json:
        """Register a checkpoint; `path` is a directory on the server's disk."""
        return self._ask("POST", "/v1/bases", json=dict(name=name, path=str(path), serve=serve))

    def delete_base(self, name: str) -> Json:
        return self._ask("DELETE", f"/v1/bases/{name}")

    # adapters

    def adapters(self, base: str | None = None) -> list[Json]:
        return self._list("/v1/adapters", {} if base is None else {"base": base})

    def upload_adapter(self, name: str, base: str, directory: Path) -> Json:
        """Upload the files of a PEFT directory on this machine."""
        paths = sorted(path for glob in _ADAPTER_FILES for path in directory.glob(glob))
        with ExitStack() as stack:
            files = [("files", (path.name, stack.enter_context(path.open("rb")))) for path in paths]
            fields = {"name": name, "base": base}
            return self._ask("POST", "/v1/adapters", data=fields, files=files)

    def delete_adapter(self, id: str) -> Json:
        return self._ask("DELETE", f"/v1/adapters/{id}")

    # generators

    def generators(self, base: str | None = None) -> list[Json]:
        return self._list("/v1/generators", {} if base is None else {"base": base})

    # aliases

    def aliases(self) -> list[Json]:
        return self._list("/v1/aliases")

    def promote(self, name: str, base: str) -> Json:
        """Let an alias stand for a base."""
        return self._ask("PUT", f"/v1/aliases/{name}", json={"base": base})

    def roll_back(self, name: str) -> Json:
        """Let an alias stand for what it stood for before."""
        return self._ask("POST", f"/v1/aliases/{name}/rollback")

    def delete_alias(self, name: str) -> Json:
        return self._ask("DELETE", f"/v1/aliases/{name}")

    # texts and models

    def upload_text(self, path: Path, purpose: str) -> Json:
        """Upload a text; the same content again is the same file."""
        with path.open("rb") as stream:
            form = {"files": {"file": (path.name, stream)}, "data": {"purpose": purpose}}
            return self._ask("POST", "/v1/files", **form)

    def models(self) -> list[Json]:
        return self._list("/v1/models")

    def complete(self, body: Json) -> Json:
        """Ask for a completion, with the body that OpenAI's clients send."""
        return self._ask("POST", "/v1/completions", json=body)

    # before a job

    def preview(self, recipe: Mapping[str, Any]) -> Json:
        """What a recipe would leave of its base."""
        return self._ask("POST", "/v1/pruning/preview", json=dict(recipe))

    def methods(self, kind: str | None = None) -> list[Json]:
        """What recipes can name."""
        return self._list("/v1/pruning/methods", {} if kind is None else {"kind": kind})

    # jobs

    def submit(self, recipe: Mapping[str, Any], idempotency_key: str | None = None) -> Json:
        """Start a pruning job; with a key, the same request again is the same job."""
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        return self._ask("POST", _JOBS, json=dict(recipe), headers=headers)

    def submit_adapters(self, recipe: Mapping[str, Any]) -> Json:
        """Start a job that merges, compresses or generates adapters, or trains a generator."""
        return self._ask("POST", _ADAPTER_JOBS, json=dict(recipe))

    def submit_sweep(self, recipe: Mapping[str, Any]) -> Json:
        """Start a job that tries every cell of a grid."""
        return self._ask("POST", _SWEEPS, json=dict(recipe))

    def choose(self, sweep: str, choice: Mapping[str, Any]) -> Json:
        """Start the pruning job of the cell of a sweep that fits best."""
        return self._ask("POST", f"{_SWEEPS}/{sweep}/jobs", json=dict(choice))

    def sweeps(self, limit: int) -> list[Json]:
        """The newest sweeps."""
        return self._list(_SWEEPS, {"limit": limit})

    def job(self, id: str) -> Json:
        return self._ask("GET", f"{_path(id)}")

    def jobs(self, limit: int) -> list[Json]:
        """The newest pruning jobs."""
        return self._list(_JOBS, {"limit": limit})

    def all_jobs(self, limit: int) -> list[Json]:
        """The newest jobs of whatever kind."""
        kinds = (self._list(path, {"limit": limit}) for path in (_JOBS, _ADAPTER_JOBS, _SWEEPS))
        found = sorted(chain(*kinds), key=lambda job: job["created_at"], reverse=True)
        return found[:limit]

    def base_report(self, name: str) -> Json:
        """What the job that made a slim base measured."""
        return self._ask("GET", f"/v1/bases/{name}/report")

    def report(self, id: str) -> Json:
        """What a job measured of the dense and the slim base."""
        return self._ask("GET", f"{_path(id)}/report")

    def cancel(self, id: str) -> Json:
        return self._ask("POST", f"{_path(id)}/cancel")

    def checkpoints(self, id: str) -> list[Json]:
        """Where a training has looked at its validation rows, newest first."""
        return list(self._pages(f"{_path(id)}/checkpoints"))

    def past_events(self, id: str) -> Iterator[Json]:
        """The events of a job so far."""
        return self._pages(f"{_path(id)}/events")

    def events(self, id: str) -> Iterator[Json]:
        """The events of a job from its start, as they happen, until it is over."""
        with self._stream(f"{_path(id)}/events") as lines:
            yield from _server_sent(lines)

    # health

    def is_healthy(self) -> bool:
        """Whether a server answers, ready or not."""
        try:
            self._ask("GET", "/health")
        except ClientError:
            return False
        return True

    def _pages(self, path: str) -> Iterator[Json]:
        """All of a list that comes in pages."""
        page: Json = {"has_more": True, "last_id": None}
        while page["has_more"]:
            after = {} if page["last_id"] is None else {"after": page["last_id"]}
            page = self._ask("GET", path, params={"limit": 100, **after})
            yield from page["data"]

    def _list(self, path: str, parameters: Mapping[str, Any] | None = None) -> list[Json]:
        data: list[Json] = self._ask("GET", path, params=parameters)["data"]
        return data

    def _ask(self, method: str, path: str, **request: Any) -> Json:
        try:
            response = self._http.request(method, path, **request)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        answer: Json = _checked(response)
        return answer

    @contextmanager
    def _stream(self, path: str) -> Iterator[Iterator[str]]:
        headers = {"accept": "text/event-stream"}
        try:
            with self._http.stream(
                "GET", path, headers=headers, timeout=_STREAM_TIMEOUT
            ) as response:
                if response.is_error:
                    response.read()
                    _checked(response)
                yield response.iter_lines()
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.TransportError) -> Unreachable:
        return Unreachable(f"no Graftwork server answers at {self.url} ({error})")


def _path(job: str) -> str:
    return f"{_PATHS.get(job.partition('-')[0], _JOBS)}/{job}"


def _checked(response: httpx.Response) -> Any:
    """The JSON of an answer, or its error."""
    try:
        answer = response.json()
        error = answer.get("error") if response.is_error else None
    except (ValueError, AttributeError) as problem:
        raise Refused(
            response.status_code, f"{response.url} is not a Graftwork server", None, None
        ) from problem
    if response.is_error:
        error = error or {}
        message = str(error.get("message", response.reason_phrase))
        raise Refused(response.status_code, message, error.get("code"), error.get("param"))
    return answer


def _server_sent(lines: Iterator[str]) -> Iterator[Json]:
    """The JSON data of server-sent events, up to [DONE]."""
    for line in lines:
        if line.startswith("data:"):
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                return
            yield json.loads(data)
