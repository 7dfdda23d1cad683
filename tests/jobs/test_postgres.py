"""The same on PostgreSQL: two workers, one killed, one job cancelled."""

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def database(postgres):
    return postgres


def test_a_killed_workers_job_is_resumed_and_another_is_cancelled(
    site, worker, gateway, create, ended, eventually
):
    site.order("slice", "wait")
    first = create()
    eventually(lambda: "slice" in site.stages(), "slice started")
    site.start_worker()
    second = create(name="other")
    eventually(lambda: site.stages().count("slice") == 2, "the second worker has the second job")
    dying, living = site.workers
    dying.kill()
    dying.wait()
    site.workers.remove(dying)
    assert gateway.post(f"/v1/pruning/jobs/{second}/cancel").json()["status"] == "cancelled"
    eventually(lambda: len(site.work_directories()) == 1, "the cancelled job is gone")
    assert living.poll() is None
    site.release("slice")
    site.start_worker()
    job = ended(first)
    assert job["status"] == "succeeded"
    assert site.stages().count("calibrate") == 2  # once for each job
    assert [path.name for path in site.artifacts()] == [job["result"]["artifact"]]
    assert site.work_directories() == []
    page = gateway.get("/v1/pruning/jobs", params={"limit": 1}).json()
    assert (page["data"][0]["id"], page["has_more"]) == (second, True)
