"""Prometheus metrics: the gateway's own, and those of every engine under the name of its base."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

import anyio.to_thread
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from service.engines import Engines
from service.job_objects import Status
from service.jobs import Jobs

_MODEL_LIMIT = 200  # distinct values of the label `model`; further models share "other"
_UNBOUNDED = "vllm:lora_requests_info"  # its labels list adapters, so they grow without bound
_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """The gateway's own metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.in_flight = Gauge(
            "graftwork_requests_in_flight", "Requests being answered.", registry=self.registry
        )
        self._requests = Counter(
            "graftwork_requests",
            "Requests answered.",
            ("route", "status", "model"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "graftwork_request_seconds",
            "Time until the last byte of the answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._first_token = Histogram(
            "graftwork_time_to_first_token_seconds",
            "Time until the first event of a streamed answer.",
            ("model",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._compositions = Counter(
            "graftwork_composition_requests",
            "Requests for a composition by where it was found: engine, shared (a load that another "
            "request had begun), memory, disk, or none (it was built).",
            ("tier",),
            registry=self.registry,
        )
        self._composition_seconds = Histogram(
            "graftwork_composition_load_seconds",
            "Time until a composition that no engine had was loaded.",
            ("tier",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._merges = Counter(
            "graftwork_composition_merges",
            "Sums that were asked for again and again, and became one plain adapter: done, failed, "
            "or interrupted (their engine went down).",
            ("outcome",),
            registry=self.registry,
        )
        self._waits = Histogram(
            "graftwork_admission_seconds",
            "Time that requests waited for a place in their engine.",
            ("engine",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._shed = Counter(
            "graftwork_requests_shed",
            "Requests refused because too many waited (overloaded) or waited too long (deadline).",
            ("engine", "reason"),
            registry=self.registry,
        )
        self._models: set[str] = set()

    def watch_queues(self, lengths: Callable[[], Mapping[str, int]]) -> None:
        """Show how many requests wait for each engine."""
        self.registry.register(_Queues(lengths))

    def observe_wait(self, engine: str, seconds: float) -> None:
        self._waits.labels(engine).observe(seconds)

    def observe_shed(self, engine: str, reason: str) -> None:
        self._shed.labels(engine, reason).inc()

    def watch_compositions(
        self,
        loaded: Callable[[], int],
        sizes: Mapping[str, Callable[[], int]],
        evictions: Mapping[str, Callable[[], int]],
    ) -> None:
        """Show how many compositions engines hold, and by tier the bytes and what was let go."""
        Gauge(
            "graftwork_compositions_loaded",
            "Compositions that engines hold.",
            registry=self.registry,
        ).set_function(loaded)
        self.registry.register(_Tiers(sizes, evictions))

    def observe_composition(self, tier: str, seconds: float | None = None) -> None:
        """Count a request for a composition, and how long the load took that it caused."""
        self._compositions.labels(tier).inc()
        if seconds is not None:
            self._composition_seconds.labels(tier).observe(seconds)

    def observe_merge(self, outcome: str) -> None:
        self._merges.labels(outcome).inc()

    def observe_request(self, route: str, status: int, model: str, seconds: float) -> None:
        """Count an answered request; `model` is empty where none is concerned."""
        self._requests.labels(route, str(status), self._bounded(model)).inc()
        self._seconds.labels(route).observe(seconds)

    def observe_first_token(self, model: str, seconds: float) -> None:
        self._first_token.labels(self._bounded(model)).observe(seconds)

    async def exposition(self, engines: Engines, jobs: Jobs) -> bytes:
        """Everything in Prometheus' text format; an engine that does not answer is left out."""
        texts = await texts_of(engines)
        counts = await anyio.to_thread.run_sync(jobs.counts)
        families = [
            *self.registry.collect(),
            *_states(engines),
            _statuses(counts),
            *engine_families(texts),
        ]
        return generate_latest(_Families(families))

    def _bounded(self, model: str) -> str:
        if model not in self._models and len(self._models) >= _MODEL_LIMIT:
            return "other"
        self._models.add(model)
        return model


def engine_families(expositions: Mapping[str, str]) -> Iterable[Metric]:
    """vLLM's own metrics of several engines, each family once, labelled `engine`=base.

    `expositions` maps the base to the text of its engine's /metrics.  An engine of several
    data-parallel ranks calls itself base/rank.
    """
    families: dict[str, Metric] = {}
    for base, text in expositions.items():
        for family in text_string_to_metric_families(text):
            if not family.name.startswith("vllm:") or family.name == _UNBOUNDED:
                continue
            merged = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            for sample in family.samples:
                rank = sample.labels.get("engine", "0")
                engine = base if rank == "0" else f"{base}/{rank}"
                labels = {**sample.labels, "engine": engine}
                merged.samples.append(sample._replace(labels=labels))
    return families.values()


class _Families(Collector):
    """Families that exist already, in the place of a registry."""

    def __init__(self, families: Sequence[Metric]):
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


class _Queues(Collector):
    """How many wait, read when it is asked for."""

    def __init__(self, lengths: Callable[[], Mapping[str, int]]):
        self._lengths = lengths

    def collect(self) -> Iterable[Metric]:
        waiting = GaugeMetricFamily(
            "graftwork_requests_waiting", "Requests waiting for an engine.", labels=("engine",)
        )
        for engine, length in self._lengths().items():
            waiting.add_metric((engine,), length)
        return [waiting]


class _Tiers(Collector):
    """What the tiers of compositions count themselves, read when it is asked for."""

    def __init__(
        self, sizes: Mapping[str, Callable[[], int]], evictions: Mapping[str, Callable[[], int]]
    ):
        self._sizes = sizes
        self._evictions = evictions

    def collect(self) -> Iterable[Metric]:
        size = GaugeMetricFamily(
            "graftwork_composition_bytes", "Adapters kept for compositions.", labels=("tier",)
        )
        evicted = CounterMetricFamily(
            "graftwork_composition_evictions", "What was let go to make room.", labels=("tier",)
        )
        for tier, value in self._sizes.items():
            size.add_metric((tier,), value())
        for tier, value in self._evictions.items():
            evicted.add_metric((tier,), value())
        return size, evicted


async def texts_of(engines: Engines) -> dict[str, str]:
    """What each ready engine says at /metrics, by base; one that does not answer is left out."""
    names = [name for name, status in engines.states().items() if status.state == "ready"]
    texts = await asyncio.gather(
        *(engines.get(name).metrics() for name in names), return_exceptions=True
    )
    return {name: text for name, text in zip(names, texts, strict=True) if isinstance(text, str)}


def _states(engines: Engines) -> Iterable[Metric]:
    states = engines.states()
    ready = GaugeMetricFamily(
        "graftwork_engine_ready", "Whether an engine takes requests.", labels=("engine", "state")
    )
    restarts = CounterMetricFamily(
        "graftwork_engine_restarts", "Restarts of an engine that failed.", labels=("engine",)
    )
    for name, status in states.items():
        ready.add_metric((name, status.state), status.state == "ready")
        restarts.add_metric((name,), status.restarts)
    return ready, restarts


def _statuses(counts: Mapping[Status, int]) -> Metric:
    family = GaugeMetricFamily("graftwork_jobs", "Pruning jobs by status.", labels=("status",))
    for status, count in counts.items():
        family.add_metric((status,), count)
    return family
