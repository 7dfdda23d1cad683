"""The job API: what it accepts, refuses and lists; no worker runs here unless a test starts one."""

import json
import threading

import pytest

JOBS = "/v1/pruning/jobs"


def error(answer):
    assert 400 <= answer.status_code < 500, answer.text
    return answer.json()["error"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"target": 1.0}, "target"),
        ({"target": 0.99}, "target"),
        ({"speed": "fast"}, "speed"),
        ({"name": "../etc"}, "name"),
        ({"base": "nobody"}, "base"),
        ({"adapters": ["nobody"]}, "adapters"),
        ({"criterion": {"name": "guess"}}, "criterion.name"),
        ({"criterion": {"name": "magnitude", "params": {"norm": "l9"}}}, "criterion.params.norm"),
        ({"allocator": {"name": "guess"}}, "allocator.name"),
        ({"schedule": {"name": "guess"}}, "schedule.name"),
        ({"recovery": [{"name": "guess"}]}, "recovery.name"),
        ({"calibration": {"file": "file-none"}}, "calibration.file"),
        ({"training": {"file": "file-none"}}, "training.file"),
        ({"evaluation": {"file": "file-none"}}, "evaluation.file"),
        ({"fleet": {"texts": {"nobody": {"file": "file-none"}}}}, "fleet.texts.nobody"),
        ({"floors": {"kv_groups": 9}}, "floors.kv_groups"),
    ],
    ids=str,
)
def test_a_recipe_that_cannot_be_run_is_refused_with_the_field_at_fault(
    gateway, recipe, change, field
):
    answer = gateway.post(JOBS, json={**recipe, **change})
    assert error(answer)["param"] == field
    assert gateway.get(JOBS).json()["data"] == []


def test_a_new_job_is_queued_and_has_the_shape_of_a_fine_tuning_job(gateway, recipe):
    job = gateway.post(JOBS, json=recipe).json()
    assert job["id"].startswith("prunejob-")
    assert job["recipe"]["name"] == "demo-slim"
    unset = {"started_at", "finished_at", "pruned_model", "stage", "result", "error"}
    assert {name for name, value in job.items() if value is None} == unset
    assert (job["status"], job["model"], job["seed"], job["metadata"]) == ("queued", "demo", 0, {})
    assert gateway.get(f"{JOBS}/{job['id']}").json() == job


def test_one_idempotency_key_makes_one_job(gateway, recipe):
    headers = {"Idempotency-Key": "monday"}
    first = gateway.post(JOBS, json=recipe, headers=headers).json()
    again = gateway.post(JOBS, json=recipe, headers=headers).json()
    assert again == first
    assert len(gateway.get(JOBS).json()["data"]) == 1


def test_an_idempotency_key_cannot_be_used_for_another_recipe(gateway, recipe):
    headers = {"Idempotency-Key": "monday"}
    gateway.post(JOBS, json=recipe, headers=headers)
    answer = gateway.post(JOBS, json={**recipe, "seed": 1}, headers=headers)
    assert (answer.status_code, "Idempotency-Key" in error(answer)["message"]) == (409, True)


def test_requests_at_the_same_time_with_one_key_make_one_job(gateway, recipe):
    headers, ids = {"Idempotency-Key": "monday"}, []

    def post():
        ids.append(gateway.post(JOBS, json=recipe, headers=headers).json()["id"])

    threads = [threading.Thread(target=post) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 8
    assert len(set(ids)) == 1


def test_a_name_that_a_base_or_another_job_holds_is_refused(gateway, recipe, create):
    assert error(gateway.post(JOBS, json={**recipe, "name": "demo"}))["param"] == "name"
    first = create()
    answer = gateway.post(JOBS, json={**recipe, "seed": 1})
    assert (answer.status_code, error(answer)["param"]) == (409, "name")
    gateway.post(f"{JOBS}/{first}/cancel")
    create(seed=1)


def test_jobs_are_listed_newest_first_page_by_page(gateway, create):
    created = [create(name=f"slim-{i}") for i in range(5)]
    seen, after = [], None
    for size, has_more in ((2, True), (2, True), (1, False)):
        page = gateway.get(JOBS, params={"limit": 2} | ({"after": after} if after else {})).json()
        ids = [job["id"] for job in page["data"]]
        assert (page["object"], len(ids), page["has_more"]) == ("list", size, has_more)
        assert (page["first_id"], page["last_id"]) == (ids[0], ids[-1])
        seen, after = seen + ids, page["last_id"]
    assert seen == created[::-1]
    assert error(gateway.get(JOBS, params={"after": "prunejob-none"}))["param"] == "after"


@pytest.mark.parametrize("path", ["", "/events", "/report"])
def test_an_unknown_job_is_not_found(gateway, path):
    answer = gateway.get(f"{JOBS}/prunejob-none{path}")
    assert (answer.status_code, error(answer)["code"]) == (404, "not_found")
    assert gateway.post(f"{JOBS}/prunejob-none/cancel").status_code == 404


def test_a_job_that_has_not_succeeded_has_no_report(gateway, create):
    answer = gateway.get(f"{JOBS}/{create()}/report")
    assert (answer.status_code, error(answer)["code"]) == (404, "not_found")


def read_stream(gateway, id, **headers):
    """The events of a stream by id, and what it ended with."""
    headers = {"Accept": "text/event-stream", **headers}
    with gateway.stream("GET", f"{JOBS}/{id}/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    ids = [line.removeprefix("id: ") for line in lines if line.startswith("id: ")]
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return dict(zip(ids, map(json.loads, data[:-1]), strict=True)), data[-1]


def test_events_are_streamed_while_the_job_runs_and_end_with_it(
    site, worker, gateway, create, eventually
):
    site.order("slice", "wait")
    id, events, messages = create(), {}, []
    eventually(lambda: "slice" in site.stages(), "slice started")
    headers = {"Accept": "text/event-stream"}
    with gateway.stream("GET", f"{JOBS}/{id}/events", headers=headers) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                events[event["id"]] = event
                messages.append(event["message"])
                if event["message"] == "slice started":  # arrives while the stage still waits
                    site.release("slice")
    assert messages.index("plan finished") < messages.index("slice started")
    assert messages[-1] == "job succeeded"
    assert {event["object"] for event in events.values()} == {"pruning.job.event"}
    finished = next(e for e in events.values() if e["message"] == "slice finished")
    assert finished["data"]["peak_rss_bytes"] > 1 << 20

    everything, end = read_stream(gateway, id)
    assert (everything, end) == (events, "[DONE]")
    third = list(events)[2]
    rest, _ = read_stream(gateway, id, **{"Last-Event-ID": third})
    assert list(rest) == list(events)[3:]
    paged = gateway.get(f"{JOBS}/{id}/events", params={"limit": 3, "after": third}).json()
    assert [event["id"] for event in paged["data"]] == list(events)[3:6]
    assert paged["has_more"]
    assert error(gateway.get(f"{JOBS}/{id}/events", params={"after": "x-y"}))["param"] == "after"


def test_the_report_of_a_job_is_served_as_json_and_as_a_page(worker, gateway, create, ended):
    job = ended(create())
    report = gateway.get(job["result"]["report"])
    assert [set(timing) for timing in report.json()["timings"]] == [
        {"seconds", "peak_rss_bytes"},
        {"seconds", "peak_rss_bytes"},
    ]
    page = gateway.get(job["result"]["report"], params={"format": "html"})
    assert page.headers["content-type"].startswith("text/html")
    assert page.text == "<h1>Report</h1>"
