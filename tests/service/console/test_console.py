"""The console in a real browser, on a real gateway whose engine is a stand-in."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service import console

pytest.importorskip("playwright.sync_api", reason="needs playwright")

PAGES = {
    "#/": "Overview",
    "#/jobs": "Jobs",
    "#/new": "New job",
    "#/bases": "Bases",
    "#/bases/demo": "demo",
    "#/bases/demo-slim": "demo-slim",
    "#/adapters": "Adapters",
    "#/playground": "Playground",
    "#/api": "API",
}
MOST_BYTES = 200_000
PHONE = {"width": 390, "height": 844}
Serious = Callable[[Any], list[str]]


@pytest.fixture
def filled(demo: httpx.Client, slim: Callable[..., None], text: str) -> None:
    """A gateway with something on every page."""
    slim("demo-slim")
    demo.put("/v1/aliases/prod", json={"base": "demo"})


def test_every_page_is_accessible_fits_a_phone_and_asks_nobody_else(
    visit: Callable[..., Any], filled: None, gateway: httpx.Client, text: str, serious: Serious
):
    light, phone = visit(), visit(viewport=PHONE, color_scheme="dark")
    recipe = {"name": "thin", "base": "demo", "target": 0.1, "ffn_multiple": 4}
    sized = {"file": text, "sequences": 2, "length": 8}
    recipe |= {"calibration": sized, "evaluation": sized}
    job = gateway.post("/v1/pruning/jobs", json=recipe).json()["id"]
    for address, heading in {**PAGES, f"#/jobs/{job}": "thin"}.items():
        assert serious(light.to(address, heading)) == [], address
        assert serious(phone.to(address, heading)) == [], f"{address}, dark"
        width = phone.tab.evaluate("document.documentElement.scrollWidth")
        assert width == PHONE["width"], address
    for seen in (light, phone):
        assert seen.complaints == []
        hosts = {httpx.URL(url).netloc for url in seen.requests}
        assert hosts == {gateway.base_url.netloc}


def test_the_first_page_is_small_and_may_run_no_script_of_others(
    visit: Callable[..., Any], filled: None, gateway: httpx.Client
):
    seen = visit()
    seen.to("", "Overview")
    assert sum(len(gateway.get(url).content) for url in set(seen.requests)) < MOST_BYTES
    policy = gateway.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert gateway.get("/console/no-such.js").status_code == 404


def test_no_file_of_it_names_another_host():
    files = [path for path in Path(console.__file__).parent.rglob("*") if path.is_file()]
    named = {host for path in files if path.suffix != ".pyc" for host in hosts(path.read_text())}
    assert named == {"www.w3.org"}  # the name of SVG's elements, which nobody fetches


def hosts(text: str) -> list[str]:
    return re.findall(r"(?:https?:)?//([\w-]+\.[\w.-]+)", text)


def test_a_job_is_previewed_started_cancelled_and_tried_again(
    visit: Callable[..., Any], filled: None, gateway: httpx.Client, serious: Serious
):
    tab = visit().to("#/new", "New job")
    aside = tab.locator(".aside")
    aside.get_by_text("saved").wait_for()
    told = aside.get_by_role("row", name="Parameters").inner_text()
    target = tab.get_by_role("slider", name="Part of the body that leaves")
    target.focus()
    for _ in range(20):
        tab.keyboard.press("ArrowLeft")
    tab.get_by_text("10 %", exact=True).wait_for()
    tab.wait_for_function(
        "told => !document.querySelector('.aside').innerText.includes(told)", arg=told
    )
    assert gateway.get("/v1/pruning/jobs").json()["data"] == []

    tab.get_by_label("Name of the slim base").fill("thin")
    tab.get_by_role("button", name="Start the job").click()
    tab.get_by_role("heading", level=1, name="thin").wait_for()
    (job,) = gateway.get("/v1/pruning/jobs").json()["data"]
    assert (job["recipe"]["target"], job["recipe"]["criterion"]["name"]) == (0.1, "obs")
    assert tab.url.endswith(job["id"])
    tab.get_by_text("queued", exact=True).wait_for()

    tab.get_by_role("button", name="Cancel").click()
    tab.get_by_role("log").get_by_text("job cancelled").wait_for()
    assert serious(tab) == []
    tab.get_by_role("button", name="Retry").click()
    tab.wait_for_function("id => !location.hash.includes(id)", arg=job["id"])
    tab.get_by_text("queued", exact=True).wait_for()
    again, _ = gateway.get("/v1/pruning/jobs").json()["data"]
    assert again["recipe"] == job["recipe"]


def test_what_cannot_be_run_is_told_at_the_field_that_is_to_blame(
    visit: Callable[..., Any], filled: None
):
    tab = visit().to("#/new", "New job")
    tab.get_by_label("Given as").select_option("parameters")
    tab.get_by_label("Amount").fill("5")
    tab.get_by_role("alert").get_by_text("smallest reachable size").wait_for()
    assert tab.get_by_label("Amount").get_attribute("aria-invalid") == "true"
    tab.get_by_label("Given as").select_option("target")
    tab.locator(".aside").get_by_text("saved").wait_for()
    assert tab.get_by_role("alert").count() == 0


def test_adapters_are_weighed_with_sliders_and_two_models_answer_side_by_side(
    visit: Callable[..., Any], filled: None, upstream: Any
):
    tab = visit().to("#/playground?a=demo&b=demo%2Bsql", "Playground")
    first, second = tab.get_by_label("Model A"), tab.get_by_label("Model B")
    assert second.locator("code").inner_text() == "demo+sql"
    weight = second.get_by_role("slider", name="Weight of sql in B")
    weight.focus()
    for _ in range(6):
        tab.keyboard.press("ArrowLeft")
    assert second.locator("code").inner_text() == "demo+sql:0.7"

    tab.get_by_label("Prompt").fill("say hello there")
    tab.keyboard.press("Control+Enter")
    for pane in (first, second):
        pane.get_by_role("log").get_by_text("say hello there hello there").wait_for()
        pane.get_by_text("first token after").wait_for()
    plain, composed = sorted((body["model"] for body in upstream.requests), key=len)
    assert plain == "demo"
    assert composed.startswith("demo+*@")


def test_an_alias_is_promoted_and_rolled_back_from_the_page_of_a_base(
    visit: Callable[..., Any], filled: None, gateway: httpx.Client
):
    tab = visit().to("#/bases/demo-slim", "demo-slim")
    assert "101.3" in tab.locator(".stats").inner_text()
    tab.get_by_label("Alias").fill("prod")
    tab.get_by_role("button", name="Promote").click()
    tab.get_by_role("status").get_by_text("prod stands for demo-slim now").wait_for()
    assert gateway.get("/v1/aliases/prod").json()["base"] == "demo-slim"
    tab.get_by_role("button", name="Roll back to demo").click()
    tab.get_by_role("status").get_by_text("prod stands for demo again").wait_for()
    assert gateway.get("/v1/aliases/prod").json()["base"] == "demo"


def test_the_front_shows_every_slim_base_and_leads_to_it(
    visit: Callable[..., Any], filled: None, slim: Callable[..., None]
):
    slim("thinner", ffn=8, delta=0.4)
    slim("worse", ffn=16, delta=0.5)
    tab = visit().to("#/bases/demo", "demo")
    rows = tab.get_by_role("region", name="Slim bases").get_by_role("row")
    assert {row.split("\t")[0]: row.endswith("yes") for row in rows.all_inner_texts()[1:]} == {
        "demo-slim": True,
        "thinner": True,
        "worse": False,
    }
    tab.locator(".chart").get_by_role("link", name="thinner").click()
    tab.get_by_role("heading", level=1, name="thinner").wait_for()


def test_a_key_is_asked_for_where_one_is_needed_and_never_stands_in_an_address(
    app: FastAPI, visit: Callable[..., Any], filled: None, serious: Serious
):
    _, key = app.state.catalog.add_key("acme", "", ("infer", "adapters", "jobs"))
    app.state.authenticator._looked = float("-inf")  # it looks for keys every few seconds
    dark = visit(viewport=PHONE, color_scheme="dark").to("", "Sign in")
    assert serious(dark) == []
    seen = visit()
    tab = seen.to("", "Sign in")
    assert serious(tab) == []
    tab.get_by_label("API key").fill("gw-wrong")
    tab.get_by_role("button", name="Sign in").click()
    tab.get_by_role("status").get_by_text("not valid").wait_for()
    tab.get_by_label("API key").fill(key)
    tab.keyboard.press("Enter")
    tab.get_by_role("heading", level=1, name="Overview").wait_for()
    tab.get_by_text("acme, with adapters, infer, jobs").wait_for()
    tab.reload()
    tab.get_by_role("heading", level=1, name="Overview").wait_for()
    assert tab.evaluate("localStorage.length") == 0
    assert not any(key in url for url in [*seen.requests, tab.url])
    tab.get_by_role("button", name="Forget the key").click()
    tab.get_by_role("heading", level=1, name="Sign in").wait_for()
    assert tab.evaluate("sessionStorage.length") == 0


def test_the_keyboard_alone_leads_through_it(visit: Callable[..., Any], filled: None):
    tab = visit().to("", "Overview")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.innerText") == "Skip to content"
    names = []
    for _ in range(7):
        tab.keyboard.press("Tab")
        names.append(tab.evaluate("document.activeElement.innerText").strip())
    assert names == ["Graftwork", "Overview", "Jobs", "Bases", "Adapters", "Playground", "New job"]
    tab.keyboard.press("Shift+Tab")
    tab.keyboard.press("Enter")
    tab.get_by_role("heading", level=1, name="Playground").wait_for()
    assert tab.evaluate("document.activeElement.tagName") == "H1"
    assert re.search("Playground", tab.title())


def test_the_api_is_described_request_by_request_without_a_word_from_afar(
    visit: Callable[..., Any], filled: None, gateway: httpx.Client, serious: Serious
):
    seen = visit()
    tab = seen.to("docs", "API")
    paths = gateway.get("/openapi.json").json()["paths"]
    assert tab.locator(".requests > details").count() == sum(map(len, paths.values()))
    tab.get_by_label("Find a request").fill("post /v1/adapters/jobs")
    tab.locator(".requests summary").filter(has_text="POST/v1/adapters/jobs").first.click()
    tab.get_by_role("heading", name="Body, application/json").wait_for()
    tab.get_by_text("MergeRecipe", exact=True).first.click()
    merge = tab.get_by_role("region", name="MergeRecipe").first
    merge.get_by_role("row", name="sources").wait_for()
    assert serious(tab) == []
    assert {httpx.URL(url).netloc for url in seen.requests} == {gateway.base_url.netloc}
    assert seen.complaints == []
    assert gateway.get("/redoc").status_code == 404


def test_every_form_is_filled_and_sent_with_the_keyboard_alone(
    visit: Callable[..., Any],
    filled: None,
    gateway: httpx.Client,
    upstream: Any,
    tmp_path: Path,
    write_base: Callable[..., Path],
    write_adapter: Callable[..., Path],
):
    tab = visit().to("#/bases", "Bases")
    keys, told = tab.keyboard, tab.get_by_role("status")
    tab.get_by_label("Name").focus()
    keys.type("other")
    keys.press("Tab")
    keys.type(str(write_base(tmp_path / "other")))
    keys.press("Enter")
    told.get_by_text("other is registered").wait_for()
    tab.get_by_role("link", name="other").wait_for()

    tab = visit_again(tab, "#/bases/demo-slim", "demo-slim")
    tab.get_by_label("Alias").focus()
    keys.type("prod")
    keys.press("Enter")
    told.get_by_text("prod stands for demo-slim now").wait_for()

    tab = visit_again(tab, "#/adapters?base=demo", "Adapters")
    files = sorted(write_adapter(tmp_path / "more", seed=2).iterdir())
    tab.get_by_label("Files").set_input_files(files)
    tab.get_by_label("Name").focus()
    keys.type("more")
    keys.press("Enter")
    told.get_by_text("demo+more is there, with rank 2").wait_for()

    tab = visit_again(tab, "#/playground?a=demo&b=demo-slim", "Playground")
    tab.get_by_label("Prompt").focus()
    keys.type("say hello there")
    pressed_until(tab, "Ask both")
    keys.press("Enter")
    tab.get_by_text("first token after").first.wait_for()

    tab = visit_again(tab, "#/new", "New job")
    tab.get_by_label("Name of the slim base").focus()
    keys.type("typed")
    pressed_until(tab, "Start the job")
    keys.press("Space")
    tab.get_by_role("heading", level=1, name="typed").wait_for()
    assert [job["recipe"]["name"] for job in gateway.get("/v1/pruning/jobs").json()["data"]] == [
        "typed"
    ]


def visit_again(tab: Any, address: str, heading: str) -> Any:
    tab.evaluate("address => { location.hash = address; }", address)
    tab.get_by_role("heading", level=1, name=heading).wait_for()
    return tab


def pressed_until(tab: Any, text: str) -> None:
    """Press Tab until the element with this text has the focus."""
    for _ in range(30):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.innerText") == text:
            return
    raise AssertionError(f"Tab does not lead to {text}")
