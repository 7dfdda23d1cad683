"""The whole walk in a browser, on the bundled model and real engines: cut, judge, compare."""

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

JOB_SECONDS = 600
PROMPT = "The film was directed by"


@pytest.fixture
def tab(browser: Any, gateway: str) -> Iterator[Any]:
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(60_000)
    asked: set[str] = set()
    page.on("request", lambda request: asked.add(httpx.URL(request.url).netloc.decode()))
    page.goto(gateway)
    yield page
    context.close()
    assert asked == {httpx.URL(gateway).netloc.decode()}


@pytest.mark.slow
@pytest.mark.engine
def test_from_a_form_to_two_answers_side_by_side(
    tab: Any, gateway: str, serious: Callable[[Any], list[str]]
):
    tab.get_by_role("link", name="New job").click()
    tab.locator(".aside").get_by_text("saved").wait_for()
    tab.get_by_label("Base", exact=True).select_option("demo")
    tab.get_by_label("Name of the slim base").fill("walked")
    for name, value in (("Sequences", "4"), ("Tokens in each", "64")):
        tab.get_by_label(name).fill(value)
    tab.get_by_role("button", name="Start the job").click()

    tab.get_by_role("heading", level=1, name="walked").wait_for()
    tab.get_by_role("link", name="Open the report").wait_for(timeout=1000 * JOB_SECONDS)
    assert "finished" in tab.get_by_role("log").inner_text()
    assert serious(tab) == []
    tab.get_by_role("link", name="Open the report").click()
    tab.get_by_role("heading", name="What stayed, by layer").wait_for()
    assert tab.locator(".chart svg").count() == 3
    assert serious(tab) == []
    until_ready(gateway, "walked")

    tab.get_by_role("link", name="Compare in the playground").click()
    panes = [tab.get_by_label(f"Model {letter}") for letter in "AB"]
    assert [pane.locator("code").inner_text() for pane in panes] == ["demo", "walked"]
    for name, presses in (("clinc150", 20), ("e2e_nlg", 6)):
        slider = panes[1].get_by_role("slider", name=f"Weight of {name} in B")
        slider.focus()
        for _ in range(presses):
            tab.keyboard.press("ArrowRight")
    assert panes[1].locator("code").inner_text() == "walked+clinc150:1+e2e_nlg:0.3"
    tab.get_by_label("Prompt").fill(PROMPT)
    streams: list[str] = []
    tab.on("response", lambda one: streams.append(one.headers.get("content-type", "")))
    tab.get_by_role("button", name="Ask both").click()
    for pane in panes:
        pane.get_by_text(re.compile("first token after|answered with nothing")).wait_for()
        answer = pane.get_by_role("log").inner_text().removeprefix(PROMPT)
        assert answer.strip() == asked(gateway, pane.locator("code").inner_text()).strip()

    assert [kind.split(";")[0] for kind in streams] == ["text/event-stream"] * 2
    assert serious(tab) == []

    tab.goto(f"{gateway}/#/adapters?base=demo")
    tab.get_by_role("button", name="Compare them").click()
    tab.get_by_role("heading", level=1, name="comparison of demo's adapters").wait_for()
    tab.get_by_role("heading", name="How alike they are").wait_for(timeout=1000 * JOB_SECONDS)
    assert "clinc150 and wikisql" in (tab.locator("svg").first.get_attribute("aria-label") or "")


@pytest.mark.slow
@pytest.mark.engine
def test_a_cell_of_a_sweep_that_is_worth_having_becomes_a_job(tab: Any, gateway: str):
    with httpx.Client(base_url=gateway, timeout=60) as client:
        texts = {one["purpose"]: one["id"] for one in client.get("/v1/files").json()["data"]}
        grid = {"target": [0.1, 0.2], "criterion": [{"name": "magnitude"}, {"name": "random"}]}
        recipe: dict[str, Any] = {"name": "grid", "base": "demo", "adapters": [], "grid": grid}
        for purpose in ("calibration", "evaluation"):
            recipe[purpose] = {"file": texts[purpose], "sequences": 2, "length": 32}
        job = client.post("/v1/pruning/sweeps", json=recipe).json()
        tab.goto(f"{gateway}/#/jobs/{job['id']}")
        tab.get_by_role("heading", name="Cells").wait_for(timeout=1000 * JOB_SECONDS)
        front = client.get(f"/v1/pruning/sweeps/{job['id']}/report").json()["front"]
        assert tab.get_by_role("region", name="Cells").get_by_role("row").count() == 1 + 4
        assert tab.get_by_role("button", name="Make it").count() == len(front)
        tab.get_by_role("button", name="Make it").first.click()
        tab.wait_for_url(re.compile("prunejob"))
        made = client.get("/v1/pruning/jobs").json()["data"][0]
        assert made["recipe"]["name"] == f"grid-{min(front)}"  # the first row's
        client.post(f"/v1/pruning/jobs/{made['id']}/cancel")


def asked(gateway: str, model: str) -> str:
    """What the API answers to the same question."""
    body = {"model": model, "prompt": PROMPT, "max_tokens": 64, "temperature": 0}
    answer = httpx.post(f"{gateway}/v1/completions", json=body, timeout=60)
    return str(answer.json()["choices"][0]["text"])


def until_ready(gateway: str, base: str) -> None:
    deadline = time.monotonic() + JOB_SECONDS
    while not httpx.get(f"{gateway}/v1/bases/{base}", timeout=60).json()["ready"]:
        assert time.monotonic() < deadline, f"{base} did not get ready"
        time.sleep(1)
