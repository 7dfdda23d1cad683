"""Real jobs through real workers that are killed with SIGKILL at random moments, again and again.

The pipeline is the real one, but for a list that it keeps of what its stages say.
"""

import os
import random
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pruning.digest import file_digest, tree_digest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

DEMO = Path(__file__).parents[2] / "deploy" / "demo"
KILLS = 25
REFIT = {"goal": "stream", "writers": True, "self_calibration": 64}
PIPELINE = """
import os
from pathlib import Path
from pruning import pipeline

SAID = Path(os.environ["ORDERS"]) / "said"


def listed(name, stage):
    def run(spec, work, progress):
        def say(fraction, message):
            with SAID.open("a") as said:
                said.write(f"{name}: {message}\\n")
            progress(fraction, message)

        with SAID.open("a") as said:
            said.write(f"a life begins\\n")
        (SAID.parent / "stage").write_text(str(os.getpid()))
        stage(spec, work, say)
    return run


STAGES = {name: listed(name, stage) for name, stage in pipeline.STAGES.items()}
"""


@pytest.fixture
def job(site, tmp_path, recipe, create):
    """Create a job that prunes the bundled base, refits it, and refits one adapter; its id."""
    (tmp_path / "listed_pipeline.py").write_text(PIPELINE)
    site.catalog.add_base("bundled", DEMO / "base", tree_digest(DEMO / "base"))
    adapter = tmp_path / "wikisql"
    ignore = shutil.ignore_patterns("eval.jsonl")  # what is measured takes time and is no weight
    shutil.copytree(DEMO / "adapters" / "wikisql", adapter, ignore=ignore)
    site.catalog.add_adapter("bundled", "wikisql", adapter, tree_digest(adapter), rank=8)
    text = DEMO / "text" / "calibration.txt"
    file = site.catalog.add_file(
        text, file_digest(text), text.name, "calibration", text.stat().st_size
    )
    changes = {
        "base": "bundled",
        "units": ["ffn_channel", "kv_group"],
        "ffn_multiple": 16,
        "criterion": {"name": "obs"},
        "recovery": [{"name": "closed_form", "params": REFIT}],
        "carry": "refit",
        "calibration": {"file": file.id, "sequences": 64, "length": 128},
        "evaluation": {"file": file.id, "sequences": 4, "length": 64},
    }

    def again() -> str:
        if [base for base in site.catalog.bases() if base.name == "demo-slim"]:
            site.catalog.delete_adapter("demo-slim", "wikisql")
            site.catalog.delete_base("demo-slim")
        (site.orders / "said").write_text("")
        return create(**changes)

    return again


def kill_with_its_group(worker, stage: int) -> None:
    """What is left of a worker's own process group; its stage dies with it."""
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def kill_stage_first(worker, stage: int) -> None:
    """The stage while its worker is held, so that nobody can take note of it; then the worker."""
    worker.send_signal(signal.SIGSTOP)
    with suppress(FileNotFoundError, ProcessLookupError):  # it had just ended
        if b"pruning.jobs.stage" in Path(f"/proc/{stage}/cmdline").read_bytes():
            os.kill(stage, signal.SIGKILL)
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


@pytest.mark.parametrize("kill", [kill_with_its_group, kill_stage_first])
def test_killed_at_random_a_job_makes_the_undisturbed_artifact_and_repeats_at_most_a_layer(
    kill, site, gateway, job, ended, eventually, repeated
):
    site.start_worker("listed_pipeline")
    started = time.monotonic()
    undisturbed = ended(job(), seconds=900)
    longest = (time.monotonic() - started) / 4  # a life: some see a stage end, few see two
    assert undisturbed["status"] == "succeeded"
    site.kill_worker()
    said, instants, left = site.orders / "said", random.Random(0), KILLS

    def is_over(id):
        return gateway.get(f"/v1/pruning/jobs/{id}").json()["finished_at"] is not None

    def live(id):
        heard, worker = said.stat().st_size, site.start_worker("listed_pipeline")
        eventually(lambda: said.stat().st_size > heard or is_over(id), "a life began", 300)
        return worker

    while left:
        id = job()
        worker = live(id)
        while left and not is_over(id):
            time.sleep(instants.uniform(0, longest))
            site.workers.remove(worker)
            kill(worker, int((site.orders / "stage").read_text()))
            left -= 1
            worker = live(id)
        found = ended(id, seconds=900)
        assert found["status"] == "succeeded"
        assert found["result"]["artifact"] == undisturbed["result"]["artifact"]
        assert max(repeated(said)) <= 1
        site.kill_worker()
