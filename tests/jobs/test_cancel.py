"""Cancelling a job: at once, and nothing of it remains."""

import os

import pytest


@pytest.fixture
def running(site, create, eventually):
    """A job whose stage `slice` has begun and waits; its id."""
    site.order("slice", "wait")
    id = create()
    eventually(lambda: "slice" in site.stages(), "slice started")
    return id


def cancel(gateway, id):
    answer = gateway.post(f"/v1/pruning/jobs/{id}/cancel")
    assert answer.status_code == 200
    return answer.json()


def nothing_remains(site):
    return not site.artifacts() and not site.work_directories()


def test_a_running_stage_ends_and_nothing_remains(
    site, worker, gateway, running, create, ended, eventually
):
    pid = site.calls()[-1][1]
    assert cancel(gateway, running)["status"] == "cancelled"
    eventually(lambda: not os.path.exists(f"/proc/{pid}"), "the stage's end")
    eventually(lambda: nothing_remains(site), "an empty disk")
    assert [base.name for base in site.catalog.bases()] == ["demo"]
    assert gateway.get(f"/v1/pruning/jobs/{running}").json()["status"] == "cancelled"
    site.release("slice")
    assert ended(create())["status"] == "succeeded"  # the name and the worker are free again


def test_a_queued_job_never_runs(site, worker, gateway, running, create, ended):
    queued = create(name="other")
    assert gateway.get(f"/v1/pruning/jobs/{queued}").json()["status"] == "queued"
    job = cancel(gateway, queued)
    assert (job["status"], job["stage"], job["result"]) == ("cancelled", None, None)
    site.release("slice")
    assert ended(running)["status"] == "succeeded"
    assert site.stages().count("calibrate") == 1


def test_a_job_cancelled_while_no_worker_lives_is_cleared_away_by_the_next(
    site, worker, gateway, running, eventually
):
    site.kill_worker()
    cancel(gateway, running)
    assert not nothing_remains(site)
    site.start_worker()
    eventually(lambda: nothing_remains(site), "an empty disk")
    assert site.stages() == ["calibrate", "plan", "slice"]


def test_once_its_artifact_is_complete_a_job_cannot_be_cancelled(
    site, worker, gateway, create, ended, eventually
):
    site.order("register", "wait")
    id = create()
    eventually(site.artifacts, "an artifact in the store")
    for status in ("running", "succeeded"):
        answer = gateway.post(f"/v1/pruning/jobs/{id}/cancel")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
        assert gateway.get(f"/v1/pruning/jobs/{id}").json()["status"] == status
        if status == "running":
            site.release("register")
            ended(id)
    assert site.catalog.base("demo-slim").serve
