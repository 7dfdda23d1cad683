"""A worker that is killed resumes its job at the stage that it was killed in."""

import signal
import subprocess

import pytest

HELD = ("calibrate", "plan", "slice", "recover", "carry", "evaluate")  # of publishing, only its end
REPAIRED = {"recovery": [{"name": "norms"}]}  # so that all of them have something to do


@pytest.fixture
def undisturbed(site, worker, create, ended):
    """The digest of the same recipe's artifact, of a run that nothing happened to."""
    job = ended(create(name="undisturbed", **REPAIRED))
    (site.orders / "calls").unlink()
    site.workers.remove(worker)
    worker.terminate()
    assert worker.wait() == 0
    return job["result"]["artifact"]


def is_gone(pid):
    state = subprocess.run(["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True)
    return state.stdout.strip() in ("", "Z")  # a zombie waits for its new parent, not for us


def test_killed_in_every_stage_the_artifact_is_that_of_an_undisturbed_run(
    site, create, ended, eventually, undisturbed
):
    id = create(**REPAIRED)
    for stage in HELD:
        site.order(stage, "wait")
        site.start_worker()
        eventually(lambda stage=stage: site.stages()[-1:] == [stage], f"{stage} started")
        site.kill_worker()
        pid = site.calls()[-1][1]
        eventually(lambda pid=pid: is_gone(pid), f"{stage} died with its worker")
        site.release(stage)
    site.order("register", "wait")
    site.start_worker()
    eventually(site.artifacts, "an artifact in the store")
    site.kill_worker()
    site.release("register")
    site.start_worker()
    job = ended(id)
    assert job["status"] == "succeeded"
    assert site.stages() == [stage for stage in HELD for _ in range(2)]  # none ran a third time
    assert job["result"]["artifact"] == undisturbed
    assert [path.name for path in site.artifacts()] == [undisturbed]


def test_killed_between_the_store_and_the_catalog_the_artifact_is_registered_by_the_next_worker(
    site, worker, create, ended, eventually
):
    site.order("register", "wait")
    id = create(**REPAIRED)
    eventually(site.artifacts, "an artifact in the store")
    site.kill_worker()
    assert [base.name for base in site.catalog.bases()] == ["demo"]
    site.release("register")
    site.start_worker()
    job = ended(id)
    assert job["status"] == "succeeded"
    assert site.catalog.base("demo-slim").artifact == job["result"]["artifact"]
    assert site.stages() == list(HELD)
    assert site.work_directories() == []


def test_a_worker_that_is_told_to_stop_leaves_its_job_to_the_next(
    site, worker, create, ended, eventually
):
    site.order("slice", "wait")
    id = create(**REPAIRED)
    eventually(lambda: "slice" in site.stages(), "slice started")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=60) == 0
    site.workers.clear()
    assert site.artifacts() == []
    site.release("slice")
    site.start_worker()
    assert ended(id)["status"] == "succeeded"
    assert site.stages().count("calibrate") == 1
    assert site.stages().count("slice") == 2


def test_a_second_worker_leaves_the_jobs_of_a_living_one_alone(
    site, worker, create, ended, eventually
):
    site.order("plan", "wait")
    first = create(**REPAIRED)
    eventually(lambda: "plan" in site.stages(), "plan started")
    site.start_worker()
    second = create(name="other", **REPAIRED)
    eventually(lambda: site.stages().count("plan") == 2, "the other worker took the other job")
    site.release("plan")
    assert ended(first)["status"] == ended(second)["status"] == "succeeded"
    assert sorted(site.stages()) == sorted(2 * HELD)
