"""A job that fails says why in words for its owner, and leaves nothing behind."""

import pytest

from pruning.digest import tree_digest


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        pytest.param(
            "refuse", ("empty_text", "calibration.file", "is empty; upload"), id="bad input"
        ),
        pytest.param("crash", ("stage_crashed", None, "worker's log"), id="a bug"),
        pytest.param("die", ("stage_killed", None, "want of memory"), id="killed by the system"),
    ],
)
def test_a_stage_that_fails_ends_the_job(site, worker, gateway, create, ended, order, expected):
    code, param, words = expected
    site.order("carry", order)
    id = create()
    job = ended(id)
    assert (job["status"], job["pruned_model"], job["result"]) == ("failed", None, None)
    assert (job["error"]["code"], job["error"]["param"]) == (code, param)
    assert words in job["error"]["message"]
    assert "Traceback" not in str(job)
    assert str(site.orders) not in str(job)
    assert site.artifacts() == site.work_directories() == []
    last = gateway.get(f"/v1/pruning/jobs/{id}/events", params={"limit": 100}).json()["data"][-1]
    assert (last["level"], last["message"]) == ("error", f"job failed: {job['error']['message']}")


def test_a_name_that_was_taken_meanwhile_fails_the_job_and_no_artifact_remains(
    site, worker, create, ended, eventually
):
    site.order("evaluate", "wait")
    id = create()
    eventually(lambda: "evaluate" in site.stages(), "evaluate started")
    base = site.catalog.base("demo").path
    site.catalog.add_base("demo-slim", base, tree_digest(base))
    site.release("evaluate")
    job = ended(id)
    assert job["status"] == "failed"
    assert (job["error"]["code"], job["error"]["param"]) == ("conflict", "name")
    assert site.catalog.base("demo-slim").path == base
    assert site.artifacts() == site.work_directories() == []
