"""PostgreSQL restarts while a job runs: the worker waits for it, and goes on where it was."""

import time

import pytest


@pytest.fixture
def database(own_postgres):
    return own_postgres.url


@pytest.mark.slow
def test_a_job_goes_on_when_its_database_is_back(
    site, worker, create, ended, eventually, own_postgres
):
    site.order("slice", "wait")
    job = create()
    eventually(lambda: "slice" in site.stages(), "the stage is begun")
    own_postgres.stop()
    site.release("slice")
    time.sleep(3)  # the stage ends meanwhile, and cannot be noted
    assert worker.poll() is None
    own_postgres.start()
    assert ended(job, 200)["status"] == "succeeded"
    assert site.stages() == ["calibrate", "plan", "slice", "carry", "evaluate"]
    assert len(site.artifacts()) == 1
