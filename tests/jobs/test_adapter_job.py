"""Merging and compressing over HTTP and through a real worker: the job object of every job."""

import json

import pytest

from pruning import artifacts
from pruning.digest import tree_digest

JOBS = "/v1/adapters/jobs"


@pytest.fixture
def two(site, tmp_path, write_adapter):
    """The site with a second adapter, `other`, of rank 3."""
    path = write_adapter(tmp_path / "other", seed=1, r=3)
    site.catalog.add_adapter("demo", "other", path, tree_digest(path), rank=3)
    return site


@pytest.fixture
def merging():
    return {
        "kind": "merge",
        "name": "both",
        "base": "demo",
        "sources": [{"adapter": "task"}, {"adapter": "other", "weight": 0.5}],
        "method": {"name": "cat"},
    }


@pytest.fixture
def ended(gateway, eventually):
    def wait(answer):
        assert answer.status_code == 200, answer.text
        path = f"{JOBS}/{answer.json()['id']}"

        def job():
            found = gateway.get(path).json()
            return found if found["finished_at"] is not None else None

        return eventually(job, f"the end of {path}", 120.0)

    return wait


def test_a_merge_ends_with_a_registered_adapter(two, worker, gateway, merging, ended):
    job = ended(gateway.post(JOBS, json=merging))
    assert job["error"] is None
    assert (job["object"], job["status"], job["model"]) == ("adapter.job", "succeeded", "demo")
    assert job["result"]["models"] == ["demo+both"]
    made = two.catalog.adapter("demo", "both")
    assert made.rank == 5
    directory = two.settings.artifacts / job["result"]["artifact"]
    assert made.path == directory / "adapters" / "both"
    assert set(artifacts.verify(directory).parents.adapters) == {"task", "other"}
    report = gateway.get(job["result"]["report"]).json()
    assert [task["weight"] for task in report["results"][0]["tasks"]] == [0.5, 1.0]
    assert gateway.get(job["result"]["report"], params={"format": "html"}).status_code == 404
    assert [one["id"] for one in gateway.get(JOBS).json()["data"]] == [job["id"]]
    assert gateway.get("/v1/pruning/jobs").json()["data"] == []
    assert gateway.get(f"/v1/pruning/jobs/{job['id']}").status_code == 404
    events = gateway.get(f"{JOBS}/{job['id']}/events").json()["data"]
    finished = [e["data"]["stage"] for e in events if e["message"].endswith("finished")]
    assert finished == ["combine", "measure", "publish"]
    assert two.work_directories() == []
    again = gateway.post(JOBS, json=merging)
    assert again.status_code == 409
    assert "demo+both" in again.json()["error"]["message"]


def test_a_source_that_broke_after_it_was_registered_fails_the_job(
    two, worker, gateway, merging, ended
):
    path = two.catalog.adapter("demo", "other").path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 2}))
    job = ended(gateway.post(JOBS, json=merging))
    assert job["status"] == "failed"
    assert job["error"]["param"] == "sources.other"
    assert "lora_A" in job["error"]["message"]
    assert two.artifacts() == []
    assert [adapter.name for adapter in two.catalog.adapters("demo")] == ["other", "task"]


def test_a_ladder_registers_every_rung(two, worker, gateway, ended):
    recipe = {
        "kind": "compress",
        "name": "small",
        "base": "demo",
        "source": "other",
        "method": {"name": "dylora", "params": {"ranks": [2, 1]}},
    }
    job = ended(gateway.post(JOBS, json=recipe))
    assert job["error"] is None
    assert job["result"]["models"] == ["demo+small-r2", "demo+small-r1"]
    assert [two.catalog.adapter("demo", f"small-r{rank}").rank for rank in (2, 1)] == [2, 1]


@pytest.mark.parametrize(
    ("changes", "param", "hint"),
    [
        ({"base": "none"}, "base", "register"),
        ({"sources": [{"adapter": "none"}]}, "sources", "demo+none"),
        ({"method": {"name": "glue"}}, "merge.name", "lego"),
        ({"method": {"name": "lego", "params": {"k": 0}}}, "merge.params.k", "greater"),
        ({"floor": 2}, "floor", "less"),
        ({"kind": "stir"}, None, "compress"),
    ],
)
def test_a_recipe_that_cannot_be_run_is_refused_at_once(
    two, gateway, merging, changes, param, hint
):
    answer = gateway.post(JOBS, json=merging | changes)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert hint in error["message"]
    assert param is None or error["param"].endswith(param)


def test_adapters_of_bases_without_a_common_parent_are_refused(
    two, gateway, merging, tmp_path, write_base
):
    path = write_base(tmp_path / "stranger")
    two.catalog.add_base("stranger", path, tree_digest(path))
    sources = [{"adapter": "task"}, {"adapter": "task", "base": "stranger"}]
    error = gateway.post(JOBS, json=merging | {"sources": sources}).json()["error"]
    assert error["code"] == "adapter_mismatch"
    assert "parent" in error["message"]
