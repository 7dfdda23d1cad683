"""A browser, the console as people see it, and a slim base with a report to look at."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from pruning.digest import tree_digest
from pruning.geometry import Geometry
from pruning.recipe import Recipe
from pruning.reports.report import (
    AdapterReport,
    BaseReport,
    LayerReport,
    Quality,
    Report,
    Sample,
    StageReport,
    size_of,
)

TEXT = {"file": "none", "sequences": 2, "length": 8}
LOSSES = {"dense_base": 3.1, "dense_adapter": 1.2, "slim_base": 3.4, "slim_adapter": 1.5}


class Visit:
    """A tab on the console; it notes what the page asks for and what it complains about."""

    def __init__(self, tab: Any, url: str):
        self.tab = tab
        self.url = url
        self.requests: list[str] = []
        self.complaints: list[str] = []
        tab.set_default_timeout(20_000)
        tab.on("request", lambda request: self.requests.append(request.url))
        tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        tab.on("console", self._note)

    def _note(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def to(self, address: str, heading: str) -> Any:
        """Go to a page and wait until its heading is there; the tab."""
        self.tab.goto(f"{self.url}/{address}")
        self.tab.get_by_role("heading", level=1, name=heading).wait_for()
        return self.tab


@pytest.fixture
def visit(browser: Any, gateway: httpx.Client) -> Iterator[Callable[..., Visit]]:
    """Open a tab, with the options of a browser's context."""
    contexts = []

    def open_tab(**options: Any) -> Visit:
        context = browser.new_context(**options)
        contexts.append(context)
        return Visit(context.new_page(), str(gateway.base_url))

    yield open_tab
    for context in contexts:
        context.close()


@pytest.fixture
def slim(
    app: FastAPI, demo: httpx.Client, tmp_path: Path, write_base: Callable[..., Path]
) -> Callable[..., None]:
    """Register a slim base of `demo`, with a report as its job would have written it."""

    def register(name: str, ffn: int = 16, delta: float = 0.1) -> None:
        artifact = tmp_path / name
        model = write_base(artifact / "model", intermediate_size=ffn)
        (artifact / "report.json").write_text(_report(name, model, delta).model_dump_json())
        digest = tree_digest(model)
        app.state.catalog.add_base(name, model, digest, parent="demo", artifact=digest)

    return register


def _report(name: str, model: Path, delta: float) -> Report:
    geometry = Geometry.of(model)
    size = size_of(geometry, 4 * geometry.parameters)
    layers = tuple(
        LayerReport(
            layer=i,
            kv_groups=layer.num_kv_heads,
            dense_kv_groups=2,
            heads=layer.num_heads,
            dense_heads=4,
            ffn_channels=layer.intermediate_size,
            dense_ffn_channels=24,
            parameters=1000,
            dense_parameters=1500,
            departure=0.1,
        )
        for i, layer in enumerate(geometry.layers)
    )
    recipe = {"name": name, "base": "demo", "target": 0.3, "calibration": TEXT, "evaluation": TEXT}
    return Report(
        recipe=Recipe.model_validate(recipe),
        export="llama",
        removed_fraction=0.3,
        dense=BaseReport(size=size, quality=Quality(token_perplexity=8, word_perplexity=90.5)),
        slim=BaseReport(size=size, quality=Quality(token_perplexity=9, word_perplexity=101.25)),
        delta_nats=delta,
        divergence=0.2,
        probe_tokens=64,
        warnings=(),
        samples=(Sample(prompt="Once upon", dense="a time", slim="a day"),),
        adapters=(AdapterReport(name="sql", rows=50, **LOSSES),),
        layers=layers,
        stages=(StageReport(stage="calibrate", seconds=1.5, peak_rss_bytes=10**8),),
        evaluation_tokens=640,
        methods=(),
        versions={"python": "3"},
    )


@pytest.fixture
def text(demo: httpx.Client) -> str:
    """The id of an uploaded text."""
    files = {"file": ("words.txt", b"one two three " * 50)}
    answer = demo.post("/v1/files", data={"purpose": "calibration"}, files=files)
    return str(json.loads(answer.text)["id"])
