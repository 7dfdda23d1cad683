"""Garbage is collected while jobs publish: nothing goes that a job has made."""

import threading

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
