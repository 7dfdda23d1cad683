"""The real pipeline, killed at fifty random instants: the same bytes, one layer lost at most."""

import json
import random
import shutil
import time
from collections import defaultdict
from pathlib import Path

import pytest

from pruning.digest import file_digest, tree_digest

pytestmark = pytest.mark.slow

DEMO = Path(__file__).parents[2] / "deploy" / "demo"
KILLS = 50
MOST_SECONDS = 10  # that a worker lives; it takes some of them to begin
ADAPTERS = ("clinc150", "wikisql")

# The stages of the product; what they say of their progress is also written down, unabridged.
LISTENING = """
import os
from pathlib import Path
from pruning import pipeline

SAID = Path(os.environ["ORDERS"]) / "said"


def heard(name, stage):
    def run(spec, work, progress):
        def say(fraction, message):
            with SAID.open("a") as said:
                said.write(f"{work.name} {os.getpid()} {name}: {message}\\n")
            progress(fraction, message)
        stage(spec, work, say)
    return run


STAGES = {name: heard(name, stage) for name, stage in pipeline.STAGES.items()}
"""


@pytest.fixture
def demo(site, tmp_path, recipe):
    """Changes to the recipe: the bundled base is cut and refit, and so are two of its adapters."""
    (tmp_path / "listening_pipeline.py").write_text(LISTENING)
    site.catalog.add_base("bundled", DEMO / "base", tree_digest(DEMO / "base"))
    for name in ADAPTERS:
        adapter = tmp_path / name
        shutil.copytree(DEMO / "adapters" / name, adapter)
        rows = (adapter / "eval.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (adapter / "eval.jsonl").write_text("".join(rows[:8]), encoding="utf-8")
        (adapter / "calibration.jsonl").write_text("".join(rows[8:]), encoding="utf-8")
        site.catalog.add_adapter("bundled", name, adapter, tree_digest(adapter), rank=8)
    text = DEMO / "text" / "calibration.txt"
    digest, size = file_digest(text), text.stat().st_size
    file = site.catalog.add_file(text, digest, text.name, "calibration", size)
    return {
        "base": "bundled",
        "target": 0.3,
        "units": ["ffn_channel", "kv_group"],
        "ffn_multiple": 16,
        "criterion": {"name": "obs"},
        "recovery": [{"name": "closed_form"}],
        "carry": "refit",
        "carry_distill": {"steps": 10, "batch_tokens": 64},
        "calibration": {"file": file.id, "sequences": 64, "length": 256},
        "evaluation": {"file": file.id, "sequences": 8, "length": 256},
    }


@pytest.fixture
def forget(site):
    """Take what a job has registered out of the catalog, so that its name is free."""

    def forget():
        for name in ADAPTERS:
            site.catalog.delete_adapter("demo-slim", name)
        site.catalog.delete_base("demo-slim")

    return forget


def test_killed_at_random_a_job_makes_the_same_artifact_and_no_kill_costs_more_than_a_layer(
    site, gateway, create, ended, demo, forget
):
    site.start_worker("listening_pipeline")
    undisturbed = ended(create(**demo), seconds=900)
    assert undisturbed["status"] == "succeeded"
    site.workers[-1].terminate()
    site.workers.pop().wait()
    forget()

    instants, kills, jobs = random.Random(0), 0, []
    while kills < KILLS:
        id = create(**demo)
        while kills < KILLS and not is_over(gateway, id):
            site.start_worker("listening_pipeline")
            time.sleep(instants.uniform(0, MOST_SECONDS))
            site.kill_worker()
            kills += 1
        site.start_worker("listening_pipeline")
        jobs.append(ended(id, seconds=900))
        site.kill_worker()
        forget()

    assert {job["status"] for job in jobs} == {"succeeded"}
    artifact = undisturbed["result"]["artifact"]
    assert {job["result"]["artifact"] for job in jobs} == {artifact}
    lost = [len(layers) for layers in repeated(site.orders / "said")]
    print(json.dumps({"kills": kills, "jobs": len(jobs), "layers_lost": sum(lost)}))
    assert max(lost) <= 1


def is_over(gateway, id):
    return gateway.get(f"/v1/pruning/jobs/{id}").json()["finished_at"] is not None


def repeated(said):
    """For every process of a stage, the layers it worked on that an earlier one had begun."""
    begun = defaultdict(dict)  # job → process → layers
    for line in said.read_text().splitlines():
        job, process, message = line.split(" ", 2)
        if "layer" in message:
            begun[job].setdefault(process, set()).add(message)
    for processes in begun.values():
        earlier = set()
        for layers in processes.values():
            yield layers & earlier
            earlier |= layers
