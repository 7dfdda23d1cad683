"""kill -9 at random moments over worker, gateway and engine while jobs and uploads come in.

The gateway is `graftwork serve`, the engine is a mock engine, the worker is the real one on a small
pipeline whose stages take tenths of a second and write real files.  A client repeats what was not
answered, jobs under an Idempotency-Key.  In the end every job must have been published once, every
upload that was acknowledged must be there whole, and nothing that is listed may be in part.
"""

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
from installation import Installation

from pruning.digest import tree_digest

WEIGHTS = (5, 2, 4)  # of worker, gateway and engine: a gateway takes longest to come back
PIPELINE = """
import shutil, time


def stage(name):
    def run(spec, work, progress):
        out = work / name
        out.mkdir()
        (out / "half").write_text("half-written")
        progress(0.1, "begun")
        time.sleep(0.2)
        (out / "half").unlink()
        globals()[name](spec, work, out)
        progress(1.0, "done")
    return run


def calibrate(spec, work, out):
    (out / "statistics").write_text(str(spec.recipe.seed))


def plan(spec, work, out):
    (out / "plan.json").write_text((work / "calibrate" / "statistics").read_text())


def slice(spec, work, out):
    shutil.copytree(spec.base, out / "model")
    (out / "model" / "kept").write_bytes((work / "plan" / "plan.json").read_bytes())


def carry(spec, work, out):
    (out / "adapters").mkdir()


def evaluate(spec, work, out):
    (out / "report.json").write_text("{}")
    (out / "report.html").write_text("<h1>Report</h1>")


STAGES = {name: stage(name) for name in ("calibrate", "plan", "slice", "carry", "evaluate")}
"""
WORKER = """
import sys
from pathlib import Path
from pruning.jobs.runner import Runner
from pruning.worker import Workplace, run
from service.catalog import Catalog

database, home = sys.argv[1], Path(sys.argv[2])
place = Workplace(database, home / "artifacts", home / "jobs")
run(place, Catalog(database).publish, Runner("killed_pipeline", threads=1))
"""


class Victims:
    """The three processes, each started again when it is dead; the gateway starts its engine."""

    def __init__(self, site: Installation):
        self.site = site
        self.kills = dict.fromkeys(("worker", "gateway", "engine"), 0)
        (site.home / "killed_pipeline.py").write_text(PIPELINE)
        self.worker = self._start_worker()

    def _start_worker(self) -> subprocess.Popen[bytes]:
        folders = [str(self.site.home), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))}
        database = f"sqlite:///{self.site.home / 'graftwork.db'}"
        command = [sys.executable, "-c", WORKER, database, str(self.site.home)]
        with (self.site.home / "worker.log").open("ab") as log:
            return subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self, who: str) -> None:
        if who == "worker":
            os.killpg(self.worker.pid, signal.SIGKILL)
            self.worker.wait()
            self.worker = self._start_worker()
        elif who == "gateway":
            assert self.site.process is not None
            self.site.process.kill()
            self.site.process.wait()
            self.site.start()
        elif not self._kill_engine():
            return
        self.kills[who] += 1

    def _kill_engine(self) -> bool:
        assert self.site.process is not None
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError, IndexError):
                parent = int(path.read_text().rpartition(")")[2].split()[1])
                command = path.with_name("cmdline").read_bytes()
                if parent == self.site.process.pid and b"mock_engine" in command:
                    os.kill(int(path.parent.name), signal.SIGKILL)
                    return True
        return False

    def stop(self) -> None:
        os.killpg(self.worker.pid, signal.SIGKILL)
        self.worker.wait()


class Client:
    """Asks until it is answered."""

    def __init__(self, port: int, headers: Mapping[str, str] | None = None):
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=10)
        self.refused: list[str] = []

    def ask(
        self, method: str, path: str, expected: Collection[int] = (), **what: Any
    ) -> httpx.Response:
        """The answer; an error that is not `expected` is noted."""
        while True:
            with suppress(httpx.TransportError):
                answer = self.http.request(method, path, **what)
                if answer.status_code not in (429, 503):
                    if answer.is_error and answer.status_code not in expected:
                        self.refused.append(f"{method} {path}: {answer.status_code}")
                    return answer
            time.sleep(0.1)


def play(site: Installation, kills: int, seconds: float, seed: int = 0) -> dict[str, Any]:
    """Kill until there were so many kills or the time is over; then look at what is there."""
    chance, over, started = random.Random(seed), threading.Event(), time.monotonic()
    victims, client = Victims(site), Client(site.port)
    jobs: dict[str, str] = {}  # id by name
    uploads: dict[str, bytes] = {}  # content by id
    text = upload_text(client, b"a text that calibrates " * 50, uploads)

    def start_job(number: int) -> None:
        name = f"slim-{number:04d}"
        jobs[name] = order(client, name, text, number)
        until_ended(client, jobs[name])
        client.ask("PATCH", f"/v1/bases/{name}", json={"serve": False})  # its engine may go

    def upload(number: int) -> None:
        upload_text(client, random.Random(number).randbytes(200_000).hex().encode(), uploads)
        over.wait(0.3)

    threads = [repeat(step, over) for step in (start_job, upload)]
    while sum(victims.kills.values()) < kills and time.monotonic() - started < seconds:
        over.wait(chance.uniform(0.0, 1.5))
        victims.kill(*chance.choices(tuple(victims.kills), WEIGHTS))
    over.set()
    for thread in threads:
        thread.join()
    site.wait("/ready", 300)
    found = _inspect(site, client, jobs, uploads)
    victims.stop()
    found["findings"] = len(site.verify())
    return {
        "kills": sum(victims.kills.values()),
        "killed": victims.kills,
        "seconds": round(time.monotonic() - started),
        "jobs": len(jobs),
        "uploads": len(uploads),
        "refused": client.refused,
        **found,
    }


def repeat(step: Callable[[int], None], over: threading.Event) -> threading.Thread:
    """Do a step again and again, each with the next number."""

    def run() -> None:
        for number in itertools.count():
            if over.is_set():
                return
            step(number)

    thread = threading.Thread(target=run, daemon=True)  # a failure elsewhere ends the script
    thread.start()
    return thread


def order(client: Client, name: str, file: str, seed: int, **further: Any) -> str:
    """Order a slim base of this name, once however often it must be asked; the job's id."""
    text = {"file": file, "sequences": 2, "length": 8}
    recipe = {"name": name, "base": "demo", "target": 0.2, "units": ["ffn_channel"]}
    recipe |= {"calibration": text, "evaluation": text, "seed": seed, **further}
    headers = {"idempotency-key": name}
    return str(client.ask("POST", "/v1/pruning/jobs", json=recipe, headers=headers).json()["id"])


def upload_text(client: Client, content: bytes, uploads: dict[str, bytes]) -> str:
    form: dict[str, Any] = {"data": {"purpose": "calibration"}, "files": {"file": ("t", content)}}
    id = str(client.ask("POST", "/v1/files", **form).json()["id"])
    uploads[id] = content
    return id


def until_ended(client: Client, id: str) -> dict[str, Any]:
    while True:
        job: dict[str, Any] = client.ask("GET", f"/v1/pruning/jobs/{id}").json()
        if job["finished_at"] is not None:
            return job
        time.sleep(0.1)


def _inspect(
    site: Installation, client: Client, jobs: dict[str, str], uploads: dict[str, bytes]
) -> dict[str, int]:
    ended = {name: until_ended(client, id) for name, id in jobs.items()}
    bases = client.ask("GET", "/v1/bases").json()["data"]
    artifacts = sorted(path.name for path in (site.home / "artifacts").iterdir() if path.is_dir())
    made = [job["result"]["artifact"] for job in ended.values() if job["status"] == "succeeded"]
    half = [base for base in bases if base["id"] in ended and not _is_whole(site, base, ended)]
    half += [path for path in (site.home / "files").glob(".staging-*")]
    half += [
        name for name in artifacts if not (site.home / "artifacts" / name / "report.json").exists()
    ]
    for id, content in uploads.items():
        answer = client.ask("GET", f"/v1/files/{id}/content")
        half += [] if answer.content == content else [id]
    on_disk = {path.name for path in (site.home / "files").iterdir()}
    listed = client.ask("GET", "/v1/files").json()["data"]
    return {
        "jobs_lost": sum(job["status"] != "succeeded" for job in ended.values()),
        "jobs_doubled": len(artifacts) - len(set(made)) + len(made) - len(set(made)),
        "half_visible": len(half),
        "uploads_lost": len(set(uploads) - {file["id"] for file in listed}),
        "disk_without_catalog": len(on_disk) - len(listed),
    }


def _is_whole(site: Installation, base: dict[str, Any], ended: dict[str, Any]) -> bool:
    artifact = site.home / "artifacts" / ended[base["id"]]["result"]["artifact"]
    whole = (artifact / "report.json").is_file() and not list(artifact.rglob("half"))
    return whole and tree_digest(artifact / "model") == base["digest"]
