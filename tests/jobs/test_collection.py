"""Garbage is collected while jobs publish: nothing goes that a job has made."""

import threading

from pruning.digest import tree_digest
from service.collection import Garbage
from service.verification import verify


def test_an_artifact_between_store_and_catalog_is_waited_for(
    site, worker, create, ended, eventually, collect
):
    site.order("register", "wait")
    job = create()
    eventually(site.artifacts, "the artifact is in the store")
    collected: list[list[Garbage]] = []
    collector = threading.Thread(target=lambda: collected.append(collect()))
    collector.start()
    collector.join(2)
    assert collector.is_alive()
    site.release("register")
    assert ended(job)["status"] == "succeeded"
    collector.join(60)
    assert collected == [[]]
    assert len(site.artifacts()) == 1
    assert [one for one in verify(site.settings, site.catalog) if one.kind == "damaged"] == []


def test_a_killed_publications_artifact_stays_until_it_is_resumed(
    site, worker, create, ended, eventually, collect
):
    site.order("register", "wait")
    job = create()
    eventually(site.artifacts, "the artifact is in the store")
    site.kill_worker()
    assert collect() == []
    site.release("register")
    site.start_worker()
    assert ended(job)["status"] == "succeeded"
    (artifact,) = site.artifacts()
    site.catalog.delete_adapter("demo-slim", "task")
    site.catalog.delete_base("demo-slim")
    assert [one.path.name for one in collect()] == [artifact.name]
    assert site.artifacts() == []


def test_a_comparison_stays_though_nothing_is_served_of_it(
    site, worker, gateway, finished, collect, tmp_path, write_adapter
):
    other = write_adapter(tmp_path / "other", seed=1)
    site.catalog.add_adapter("demo", "other", other, tree_digest(other), rank=2)
    compare = {"kind": "compare", "base": "demo"}
    job = finished(gateway.post("/v1/adapters/jobs", json=compare))
    assert job["status"] == "succeeded", job["error"]
    before = gateway.get(job["result"]["report"]).json()
    assert collect() == []
    assert gateway.get(job["result"]["report"]).json() == before
    assert before["names"] == ["other", "task"]
