"""A job from its creation to its artifact, over HTTP and through a real worker process."""

import pytest

from pruning import artifacts
from pruning.jobs.kinds import STAGES, stages_of
from pruning.recipe import Recipe


def test_a_job_ends_with_a_registered_artifact(site, worker, gateway, recipe, ended):
    def post():
        headers = {"Idempotency-Key": "monday"}
        return gateway.post("/v1/pruning/jobs", json=recipe, headers=headers).json()

    job = ended(post()["id"])
    assert job["error"] is None
    assert (job["object"], job["status"], job["progress"]) == ("pruning.job", "succeeded", 1.0)
    assert (job["model"], job["pruned_model"]) == ("demo", "demo-slim")
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]
    assert job["result"]["models"] == ["demo-slim", "demo-slim+task"]
    directory = site.settings.artifacts / job["result"]["artifact"]
    manifest = artifacts.verify(directory)
    assert manifest.parents.base == site.catalog.base("demo").digest
    assert manifest.parents.adapters == {"task": site.catalog.adapter("demo", "task").digest}
    assert site.catalog.base("demo-slim").path == directory / "model"
    assert site.catalog.base("demo-slim").artifact == manifest.digest
    assert site.catalog.adapter("demo-slim", "task").path == directory / "adapters" / "task"
    assert site.work_directories() == []
    assert post() == job  # the key still names it, although its name is taken by now


@pytest.mark.parametrize(
    ("changes", "idle"),
    [
        ({}, {"schedule", "recover"}),
        ({"recovery": [{"name": "norms"}]}, {"schedule"}),
        ({"schedule": {"name": "cubic"}, "recovery": [{"name": "norms"}]}, set()),
    ],
    ids=["neither", "recovery", "both"],
)
def test_stages_without_anything_to_do_are_not_run(recipe, changes, idle):
    stages = stages_of(Recipe.model_validate({**recipe, **changes}))
    assert stages == tuple(stage for stage in STAGES if stage not in idle)


def test_a_recovered_base_is_the_one_in_the_artifact(site, worker, create, ended):
    job = ended(create(recovery=[{"name": "norms"}]))
    assert site.stages() == ["calibrate", "plan", "slice", "recover", "carry", "evaluate"]
    directory = site.settings.artifacts / job["result"]["artifact"]
    assert (directory / "model" / "repaired").read_text() == "yes"
