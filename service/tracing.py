"""OpenTelemetry traces of requests and of the stages of jobs; loaded only where they are wanted.

Spans have names, times, statuses and ids: no prompt, no answer, no key and no tenant.  Where they
go, and which are kept, is OpenTelemetry's own configuration (OTEL_*).
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pruning.jobs.runner import Runner, Usage
from pruning.progress import Progress
from service.engines import Engine
from service.middleware import UNLOGGED
from service.proxy import Proxy

_HEADERS = TraceContextTextMapPropagator()  # traceparent and tracestate, of the W3C


class Tracing:
    """The traces of one process, which is `graftwork-PROCESS` to who looks at them."""

    def __init__(self, process: str, processor: SpanProcessor | None = None):
        resource = Resource.create({"service.name": f"graftwork-{process}"})
        self.provider = TracerProvider(resource=resource)
        self.provider.add_span_processor(processor or BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self.provider.get_tracer("graftwork")

    def proxy(self, *parts: Any) -> Proxy:
        """A proxy of these parts, traced."""
        return TracedProxy(self._tracer, *parts)

    def watch(self, app: FastAPI) -> None:
        """Trace every request; what is added to the application later is outside of it."""
        app.add_middleware(TracedRequests, tracer=self._tracer)

    def runner(self, **options: Any) -> Runner:
        """A runner of stages with these options, traced."""
        return TracedRunner(**options, tracer=self._tracer)


class TracedRequests:
    """A span for each request, below the one that its `traceparent` names."""

    def __init__(self, app: ASGIApp, *, tracer: Tracer):
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in UNLOGGED:
            await self._app(scope, receive, send)
            return
        above = _HEADERS.extract(Headers(scope=scope))
        span = self._tracer.start_span(scope["method"], above, SpanKind.SERVER)
        state = scope.setdefault("state", {})
        state["trace"] = trace.set_span_in_context(span, Context())

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                span.set_attribute("http.response.status_code", message["status"])
                if message["status"] >= 500:
                    span.set_status(StatusCode.ERROR)
            await send(message)

        try:
            with _failing(span):
                await self._app(scope, receive, observed)
        finally:
            span.set_attribute("http.request.method", scope["method"])
            span.set_attribute("graftwork.request_id", state.get("request_id", ""))
            if (route := getattr(scope.get("route"), "path", None)) is not None:
                span.update_name(f"{scope['method']} {route}")
                span.set_attribute("http.route", route)
            span.end()


class TracedProxy(Proxy):
    """Spans for the wait in the queue and for the engine's work, which learns of its span."""

    def __init__(self, tracer: Tracer, *own: Any):
        super().__init__(*own)
        self._tracer = tracer

    async def _enter(
        self, request: Request, turn: AbstractAsyncContextManager[None], held: AsyncExitStack
    ) -> None:
        span = self._tracer.start_span("admission", request.state.trace)
        try:
            with _failing(span):
                await super()._enter(request, turn, held)
        finally:
            span.end()

    async def _call(
        self,
        request: Request,
        engine: Engine,
        content: bytes,
        held: AsyncExitStack,
        headers: dict[str, str],
    ) -> aiohttp.ClientResponse:
        attributes = {"graftwork.engine": engine.name.partition("~")[0]}
        span = self._tracer.start_span(
            "engine", request.state.trace, SpanKind.CLIENT, attributes=attributes
        )
        held.callback(span.end)  # a stream goes on after the engine has answered
        _HEADERS.inject(headers, trace.set_span_in_context(span, Context()))
        with _failing(span):
            return await super()._call(request, engine, content, held, headers)


@dataclass(frozen=True, kw_only=True)
class TracedRunner(Runner):
    """A span for each run of a stage; all of a job are one trace, whichever worker ran them."""

    tracer: Tracer

    def __call__(
        self, stage: str, work: Path, progress: Progress, cancelled: Callable[[], bool]
    ) -> Usage:
        attributes = {"graftwork.job": work.name, "graftwork.kind": self.kind}
        span = self.tracer.start_span(f"stage {stage}", _of_job(work.name), attributes=attributes)
        try:
            with _failing(span):
                usage = super().__call__(stage, work, progress, cancelled)
            span.set_attribute("graftwork.peak_rss_bytes", usage.peak_rss_bytes)
            return usage
        finally:
            span.end()


@contextmanager
def _failing(span: Span) -> Iterator[None]:
    """Note the kind of an error, not its text: that may name what is nobody's business."""
    try:
        yield
    except BaseException as error:
        span.set_status(StatusCode.ERROR, type(error).__name__)
        raise


def _of_job(id: str) -> Context:
    """Below a span that is known by the job's id alone."""
    digest = hashlib.sha256(id.encode()).digest()
    above = trace.SpanContext(
        int.from_bytes(digest[:16]),
        int.from_bytes(digest[16:24]),
        is_remote=True,
        trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(above), Context())
