"""The real pipeline on the bundled model: killed in the middle, it makes the same artifact."""

import shutil
from pathlib import Path

import pytest

from pruning.digest import file_digest, tree_digest

pytestmark = pytest.mark.slow

DEMO = Path(__file__).parents[2] / "deploy" / "demo"


@pytest.fixture
def demo(site, tmp_path, recipe):
    """Changes to the recipe that make it prune the bundled base and carry one adapter."""
    site.catalog.add_base("bundled", DEMO / "base", tree_digest(DEMO / "base"))
    adapter = tmp_path / "wikisql"
    ignore = shutil.ignore_patterns("eval.jsonl")  # measuring it takes minutes
    shutil.copytree(DEMO / "adapters" / "wikisql", adapter, ignore=ignore)
    site.catalog.add_adapter("bundled", "wikisql", adapter, tree_digest(adapter), rank=8)
    text = DEMO / "text" / "calibration.txt"
    digest, size = file_digest(text), text.stat().st_size
    file = site.catalog.add_file(text, digest, text.name, "calibration", size)
    return {
        "base": "bundled",
        "target": 0.3,
        "units": ["ffn_channel", "kv_group"],
        "ffn_multiple": 16,
        "criterion": {"name": "taylor"},
        "allocator": {"name": "global"},
        "calibration": {"file": file.id, "sequences": 16, "length": 128},
        "evaluation": {"file": file.id, "sequences": 4, "length": 64},
    }


def test_killed_while_it_calibrates_the_job_makes_the_artifact_of_an_undisturbed_run(
    site, gateway, create, ended, eventually, demo
):
    def messages(id):
        events = gateway.get(f"/v1/pruning/jobs/{id}/events", params={"limit": 100}).json()
        return [(event["type"], event["message"]) for event in events["data"]]

    site.start_worker("pruning.pipeline")
    one = ended(create(**demo), seconds=900)
    site.catalog.delete_adapter("demo-slim", "wikisql")
    site.catalog.delete_base("demo-slim")
    killed = create(**demo)
    eventually(lambda: "progress" in dict(messages(killed)), "calibration is on its way", 300)
    site.kill_worker()
    assert messages(killed)[-1][1] != "calibrate finished"
    site.start_worker("pruning.pipeline")
    other = ended(killed, seconds=900)
    assert one["status"] == other["status"] == "succeeded"
    assert one["result"]["artifact"] == other["result"]["artifact"]
    assert one["result"]["models"] == ["demo-slim", "demo-slim+wikisql"]
