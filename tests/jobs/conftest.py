"""A gateway, worker processes on one database, and a small pipeline whose stages can be held.

The pipeline is a module of its own that the worker is told the name of: its stages write real
files that depend on their input, and do what a file in the folder `orders` tells them.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from pruning.digest import file_digest, tree_digest
from service.app import create_app
from service.catalog import Catalog
from service.collection import Collector, Garbage
from service.jobs import Jobs
from service.settings import Settings

PIPELINE = """
import os, shutil, signal, time
from pathlib import Path
from pruning.errors import InvalidInput

ORDERS = Path(os.environ["ORDERS"])


def obey(name):
    order = ORDERS / name
    while order.exists() and order.read_text() == "wait":
        time.sleep(0.02)
    said = order.read_text() if order.exists() else ""
    if said == "refuse":
        raise InvalidInput("calibration.file", "is empty; upload a longer text", code="empty_text")
    if said == "crash":
        raise RuntimeError(f"at {ORDERS}")
    if said == "die":
        os.kill(os.getpid(), signal.SIGKILL)


def stage(name):
    def run(spec, work, progress):
        with (ORDERS / "calls").open("a") as calls:
            calls.write(f"{name} {os.getpid()}\\n")
        out = work / name
        out.mkdir()
        (out / "half").write_text("half-written")
        print("a library prints this")
        progress(0.1, "begun")
        obey(name)
        (out / "half").unlink()
        globals()[name](spec, work, out)
        progress(1.0, "done")
    return run


def calibrate(spec, work, out):
    (out / "statistics").write_text(str(len(spec.calibration[0].read_bytes()) + spec.recipe.seed))


def plan(spec, work, out):
    kept = (work / "calibrate" / "statistics").read_text()
    (out / "plan.json").write_text('{"kept": %s}' % kept)


def slice(spec, work, out):
    shutil.copytree(spec.base, out / "model")
    (out / "model" / "kept").write_bytes((work / "plan" / "plan.json").read_bytes())


def recover(spec, work, out):
    shutil.copytree(work / "slice" / "model", out / "model")
    (out / "model" / "repaired").write_text("yes")


def carry(spec, work, out):
    for name, path in spec.adapters.items():
        shutil.copytree(path, out / "adapters" / name)


def evaluate(spec, work, out):
    timings = [(work / f"{name}.timing.json").read_text() for name in ("calibrate", "carry")]
    (out / "report.json").write_text('{"timings": [%s]}' % ", ".join(timings))
    (out / "report.html").write_text("<h1>Report</h1>")


NAMES = ("calibrate", "plan", "slice", "recover", "carry", "evaluate")
STAGES = {name: stage(name) for name in NAMES}
"""

WORKER = """
import sys
from pathlib import Path
from pruning.jobs.runner import Runner
from pruning.worker import Workplace, run
from service.catalog import Catalog
from held_pipeline import obey

database, home, pipeline = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
catalog = Catalog(database)

def publish(spec, artifact, digest):
    obey("register")
    catalog.publish(spec, artifact, digest)

run(Workplace(database, home / "artifacts", home / "jobs"), publish, Runner(pipeline, threads=1))
"""


@dataclass
class Site:
    """One installation: settings, its catalog, and the orders for the stages."""

    settings: Settings
    catalog: Catalog
    orders: Path
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start_worker(self, pipeline: str = "held_pipeline") -> subprocess.Popen[bytes]:
        """A worker process, as `graftwork worker` would be."""
        inherited = os.environ.get("PYTHONPATH")
        folders = os.pathsep.join(filter(None, [str(self.orders.parent), inherited]))
        environment = {**os.environ, "ORDERS": str(self.orders), "PYTHONPATH": folders}
        arguments = [self.settings.database, str(self.settings.home), pipeline]
        command = [sys.executable, "-c", WORKER, *arguments]
        worker = subprocess.Popen(command, env=environment, process_group=0)
        self.workers.append(worker)
        return worker

    def kill_worker(self) -> None:
        """kill -9: the worker alone, not its children."""
        worker = self.workers.pop()
        worker.kill()
        worker.wait()

    def order(self, stage: str, what: str) -> None:
        (self.orders / stage).write_text(what)

    def release(self, stage: str) -> None:
        (self.orders / stage).unlink()

    def calls(self) -> list[tuple[str, int]]:
        """Stages that were begun, in order, with their process ids."""
        path = self.orders / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(name, int(pid)) for name, pid in map(str.split, lines)]

    def stages(self) -> list[str]:
        return [name for name, _ in self.calls()]

    def artifacts(self) -> list[Path]:
        store = self.settings.artifacts
        return sorted(store.glob("[!.]*"))

    def work_directories(self) -> list[Path]:
        jobs = self.settings.jobs
        return [path for path in jobs.iterdir() if path.is_dir()] if jobs.exists() else []


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """Wait until a condition holds, and say what was waited for if it never does."""

    def wait(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if result := condition():
                return result
            time.sleep(0.1)
        raise AssertionError(f"not within {seconds} s: {what}")

    return wait


@pytest.fixture
def database(
    fresh_database: Callable[[], AbstractContextManager[str | None]],
) -> Iterator[str | None]:
    """The URL of the database; SQLite below home when it is None."""
    with fresh_database() as url:
        yield url


@pytest.fixture
def site(
    tmp_path: Path, database: str | None, base_directory: Path, adapter_directory: Path
) -> Iterator[Site]:
    """An installation with one base, `demo`, its adapter `task`, and a text."""
    (tmp_path / "held_pipeline.py").write_text(PIPELINE)
    orders, text = tmp_path / "orders", tmp_path / "text.txt"
    orders.mkdir()
    text.write_text("one two three " * 20)
    settings = Settings(home=tmp_path / "home", database_url=database)
    catalog = Catalog(settings.database)
    catalog.add_base("demo", base_directory, tree_digest(base_directory))
    digest = tree_digest(adapter_directory)
    catalog.add_adapter("demo", "task", adapter_directory, digest, rank=2)
    catalog.add_file(text, file_digest(text), "text.txt", "calibration", text.stat().st_size)
    site = Site(settings, catalog, orders)
    yield site
    for worker in site.workers:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    catalog.close()


@pytest.fixture
def worker(site: Site) -> subprocess.Popen[bytes]:
    return site.start_worker()


@pytest.fixture
def gateway(site: Site) -> Iterator[httpx.Client]:
    """A client of the gateway over real HTTP; its engines stay off."""
    app = create_app(site.settings)
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        yield client
    server.should_exit = True
    thread.join()
    app.state.jobs.close()
    app.state.catalog.close()


@pytest.fixture
def recipe(site: Site) -> dict[str, Any]:
    """A recipe that the site can run."""
    text = {"file": site.catalog.files()[0].id, "sequences": 2, "length": 8}
    return {
        "name": "demo-slim",
        "base": "demo",
        "target": 0.2,
        "units": ["ffn_channel"],
        "ffn_multiple": 4,
        "calibration": text,
        "evaluation": text,
    }


@pytest.fixture
def create(gateway: httpx.Client, recipe: dict[str, Any]) -> Callable[..., str]:
    """Create a job of the recipe with some fields changed; its id."""

    def post(**changes: Any) -> str:
        answer = gateway.post("/v1/pruning/jobs", json={**recipe, **changes})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    return post


@pytest.fixture
def ended(gateway: httpx.Client, eventually: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """Wait for the end of a job; the job."""

    def wait(id: str, seconds: float = 60.0) -> dict[str, Any]:
        def job() -> dict[str, Any] | None:
            found = gateway.get(f"/v1/pruning/jobs/{id}").json()
            return found if found["finished_at"] is not None else None

        return dict(eventually(job, f"the end of {id}", seconds))

    return wait


@pytest.fixture
def finished(
    gateway: httpx.Client, eventually: Callable[..., Any]
) -> Callable[..., dict[str, Any]]:
    """Wait for the end of the adapter job that an answer tells of; the job."""

    def wait(answer: httpx.Response, seconds: float = 300.0) -> dict[str, Any]:
        assert answer.status_code == 200, answer.text
        path = f"/v1/adapters/jobs/{answer.json()['id']}"

        def job() -> dict[str, Any] | None:
            found = gateway.get(path).json()
            return found if found["finished_at"] is not None else None

        return dict(eventually(job, f"the end of {path}", seconds))

    return wait


@pytest.fixture
def collect(site: Site) -> Callable[[], list[Garbage]]:
    """Collect as `graftwork gc --hours 0` does."""

    def run() -> list[Garbage]:
        jobs = Jobs(site.settings, site.catalog)
        try:
            return list(Collector(site.settings, site.catalog, jobs).collect(0))
        finally:
            jobs.close()

    return run
