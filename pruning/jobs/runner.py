"""Runs a stage as a subprocess: cancellable at once, measured, and dead when the worker is dead."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pruning.jobs.job import JobFailed
from pruning.jobs.kinds import PRUNING, Kind
from pruning.jobs.stage import INVALID_INPUT
from pruning.progress import Measured, Progress

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.25  # how soon a cancellation is noticed
_TAIL_BYTES = 8192


class Cancelled(Exception):
    """The job was cancelled while the stage ran."""


@dataclass(frozen=True)
class Usage:
    """What a stage took; the peak is that of its main process."""

    seconds: float
    peak_rss_bytes: int


@dataclass(frozen=True)
class Runner:
    """Runs stages of the module `pipeline` with so many threads (0: one per core)."""

    pipeline: str = PRUNING.pipeline
    threads: int = 0
    kind: str = PRUNING.workflow

    def of(self, kind: Kind) -> "Runner":
        """One for jobs of a kind."""
        if kind is PRUNING:
            return self
        return replace(self, pipeline=kind.pipeline, kind=kind.workflow)

    def __call__(
        self, stage: str, work: Path, progress: Progress, cancelled: Callable[[], bool]
    ) -> Usage:
        """Run `stage` in `work` to its end, and leave its usage in work/STAGE.timing.json.

        `progress` hears the stage in this thread; `cancelled` is asked in another, a few times a
        second.  Raises JobFailed, or Cancelled once no process of the stage is left.
        """
        started = time.monotonic()
        stderr_path = work / f"{stage}.stderr"
        with stderr_path.open("wb") as stderr:
            process = subprocess.Popen(
                self._command(stage, work),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=self._environment(),
                process_group=0,
            )
        assert process.stdout is not None
        outcome: dict[str, Any] = {}
        watch = _Watch(process.pid, cancelled)
        try:
            with watch, process.stdout:
                outcome = _follow(process.stdout, progress)
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        finally:
            _end(process)
        if watch.cancelled:
            raise Cancelled(stage)
        if process.returncode != 0:
            raise _failure(stage, process.returncode, outcome.get("error"), stderr_path)
        usage = Usage(round(time.monotonic() - started, 3), outcome["peak_rss_bytes"])
        (work / f"{stage}.timing.json").write_text(json.dumps(asdict(usage)) + "\n")
        return usage

    def _command(self, stage: str, work: Path) -> list[str]:
        options = ["--kind", self.kind, "--pipeline", self.pipeline, "--parent", str(os.getpid())]
        return [sys.executable, "-m", "pruning.jobs.stage", stage, str(work), *options]

    def _environment(self) -> dict[str, str]:
        environment = {
            "OMP_WAIT_POLICY": "PASSIVE",  # a thread that waits leaves its core to the engines
            **os.environ,
            # Everything a recipe names is a local path; a hidden download would be another input.
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        if self.threads:
            environment |= {"OMP_NUM_THREADS": str(self.threads)}
        return environment


class _Watch:
    """Kills a process group from a thread of its own as soon as `cancelled` says so."""

    def __init__(self, group: int, cancelled: Callable[[], bool]):
        self.cancelled = False
        self._group = group
        self._ask = cancelled
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(_POLL_SECONDS):
            try:
                self.cancelled = self._ask()
            except Exception:  # the database is away; it must not end the watch for good
                log.warning("cannot ask whether the job was cancelled", exc_info=True)
            if self.cancelled:
                os.killpg(self._group, signal.SIGKILL)
                return


def _follow(lines: Iterable[bytes], progress: Progress) -> dict[str, Any]:
    """Forward progress until the stage closes its stdout; what else it said, if anything."""
    outcome: dict[str, Any] = {}
    for line in lines:
        if not line.endswith(b"\n"):  # killed while it spoke
            break
        said = json.loads(line)
        if "fraction" in said:
            progress(said["fraction"], Measured(said["message"], **said["data"]))
        else:
            outcome = said
    return outcome


def _end(process: subprocess.Popen[bytes]) -> None:
    # The leader is not reaped yet, so the group's number cannot belong to anybody else.
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _failure(stage: str, returncode: int, error: dict[str, Any] | None, stderr: Path) -> JobFailed:
    if returncode == INVALID_INPUT and error is not None:
        return JobFailed(**error)
    tail = stderr.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
    log.error("stage %s ended with %d; its last words:\n%s", stage, returncode, tail)
    if returncode == -signal.SIGKILL:
        message = (
            f"the stage {stage!r} was killed, most likely for want of memory; "
            "use fewer or shorter calibration sequences, or a machine with more memory"
        )
        return JobFailed("stage_killed", message)
    message = f"the stage {stage!r} stopped unexpectedly; the worker's log tells more"
    return JobFailed("stage_crashed", message)
