"""Traces: who waited where, from the client's span down to the engine's; nothing of contents."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from pruning.jobs.job import JobFailed
from pruning.jobs.kinds import PRUNING
from pruning.recipe import PruneSpec, Recipe, Text
from service.app import create_app
from service.settings import Settings
from service.tracing import Tracing

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
PIPELINE = """
def calibrate(spec, work, progress):
    progress(1.0, "done")


def plan(spec, work, progress):
    raise RuntimeError("a secret")


STAGES = {"calibrate": calibrate, "plan": plan}
"""


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def app(settings: Settings, engines: Any, exporter: InMemorySpanExporter) -> FastAPI:
    return create_app(settings, engines, Tracing("gateway", SimpleSpanProcessor(exporter)))


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Callable[[set[str]], dict[str, ReadableSpan]]:
    """All that have ended, by name, once these are among them: answers come before the ends."""

    def ended(names: set[str]) -> dict[str, ReadableSpan]:
        deadline = time.monotonic() + 20
        while True:
            found = {span.name: span for span in exporter.get_finished_spans()}
            if names <= found.keys() or time.monotonic() > deadline:
                return found
            time.sleep(0.01)

    return ended


class Collector:
    """A real receiver of OTLP over HTTP."""

    def __init__(self) -> None:
        received = self.received = list[ExportTraceServiceRequest]()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["content-length"]))
                received.append(ExportTraceServiceRequest.FromString(content))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a job of a small pipeline works."""
    (tmp_path / "traced_pipeline.py").write_text(PIPELINE)
    inherited = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), inherited])))
    work = tmp_path / "prunejob-7"
    work.mkdir()
    text = Text(file="x")
    recipe = Recipe(name="y", base="x", target=0.1, calibration=text, evaluation=text)
    paths = {"base": tmp_path, "calibration": tmp_path, "evaluation": tmp_path}
    spec = PruneSpec(recipe=recipe, adapters={}, **paths)
    (work / "spec.json").write_text(spec.model_dump_json())
    return work


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_its_wait_and_its_engine_are_spans_of_the_clients_trace(
    demo: httpx.Client,
    upstream: Any,
    exporter: InMemorySpanExporter,
    spans: Callable[[set[str]], dict[str, ReadableSpan]],
    stream: bool,
):
    exporter.clear()
    body = {"model": "demo+sql", "prompt": "a secret", "stream": stream}
    headers = {"traceparent": PARENT, "x-request-id": "request-7"}
    assert demo.post("/v1/completions", json=body, headers=headers).status_code == 200
    names = {"POST /v1/completions", "admission", "engine"}
    found = spans(names)
    assert set(found) == names
    request, engine = found["POST /v1/completions"], found["engine"]
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == "b7ad6b7169203331"
    for name in ("admission", "engine"):
        assert found[name].parent == request.context
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/completions",
        "http.response.status_code": 200,
        "graftwork.request_id": "request-7",
    }
    told = f"00-{TRACE}-{engine.context.span_id:016x}-01"
    assert upstream.headers[-1]["traceparent"] == told
    assert engine.end_time is not None
    assert request.end_time is not None
    assert engine.end_time <= request.end_time
    assert "secret" not in "".join(span.to_json() for span in found.values())


def test_a_failure_is_told_by_its_kind_alone(
    demo: httpx.Client,
    exporter: InMemorySpanExporter,
    spans: Callable[[set[str]], dict[str, ReadableSpan]],
    engines: Any,
):
    engines.held.add("demo")
    exporter.clear()
    assert demo.post("/v1/completions", json={"model": "demo", "prompt": ""}).status_code == 503
    assert demo.get("/v1/files/file-7").status_code == 404
    assert demo.get("/health").status_code == 200
    assert demo.get("/nothing/here").status_code == 404
    expected = {"POST /v1/completions": "ERROR", "GET /v1/files/{id}": "UNSET", "GET": "UNSET"}
    found = spans(set(expected))
    assert {name: span.status.status_code.name for name, span in found.items()} == expected


def test_all_stages_of_a_job_are_one_trace_and_reach_the_collector_of_the_environment(
    work: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    for stage in ("calibrate", "plan"):  # each by a worker of its own
        tracing = Tracing("worker")
        run = tracing.runner(pipeline="traced_pipeline").of(PRUNING)
        with nullcontext() if stage == "calibrate" else pytest.raises(JobFailed):
            run(stage, work, lambda *_: None, lambda: False)
        tracing.provider.shutdown()
    (first,), (second,) = [
        [span for scope in resource.scope_spans for span in scope.spans]
        for request in collector.received
        for resource in request.resource_spans
    ]
    assert (first.name, second.name) == ("stage calibrate", "stage plan")
    assert first.trace_id == second.trace_id
    told = {pair.key: pair.value for pair in first.attributes}
    assert told["graftwork.job"].string_value == work.name
    assert told["graftwork.peak_rss_bytes"].int_value > 1 << 20
    assert (second.status.code, second.status.message) == (2, "JobFailed")
    whole = "".join(map(str, collector.received))
    assert "graftwork-worker" in whole
    assert "secret" not in whole


@pytest.mark.slow
def test_a_gateway_sends_its_traces_where_the_environment_says(
    collector: Collector, tmp_path: Path
):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    own = {"GRAFTWORK_HOME": str(tmp_path), "GRAFTWORK_PORT": str(port), "GRAFTWORK_WORKER": "0"}
    own |= {"GRAFTWORK_ENGINE_COMMAND": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    own |= {"OTEL_BSP_SCHEDULE_DELAY": "50"}
    command = [sys.executable, "-P", "-m", "service.cli", "serve"]
    with subprocess.Popen(command, env={**os.environ, **own}) as gateway:
        try:
            while not collector.received:
                with suppress(httpx.TransportError):
                    httpx.get(f"http://127.0.0.1:{port}/v1/models")
                time.sleep(0.1)
        finally:
            gateway.terminate()
    assert "GET /v1/models" in str(collector.received)
