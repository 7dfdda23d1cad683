"""The state of the service in one small object: what a console shows first."""

import asyncio
from collections.abc import Iterable, Mapping

import anyio.to_thread
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from service.catalog import Catalog
from service.engines import Engines
from service.errors import GraftworkError
from service.job_objects import Status
from service.jobs import Jobs
from service.metrics import texts_of
from service.tenants import Principal

_FIGURES = {  # of vLLM, by what they are called here
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_cache_usage",
    "vllm:generation_tokens_total": "generated_tokens",
    "vllm:prompt_tokens_total": "prompt_tokens",
    "vllm:prefix_cache_queries_total": "prefix_cache_queries",
    "vllm:prefix_cache_hits_total": "prefix_cache_hits",
}


class Load(BaseModel):
    """What an engine does now, and has done since it started; cache figures are in tokens."""

    running: float = 0
    waiting: float = 0
    kv_cache_usage: float = 0
    generated_tokens: float = 0
    prompt_tokens: float = 0
    prefix_cache_queries: float = 0
    prefix_cache_hits: float = 0


class EngineView(BaseModel):
    """An engine by its base; `load` and `resident` only for who may read metrics."""

    base: str
    state: str
    restarts: int
    adapters: int  # registered
    resident: int | None  # of all that requests may name, compositions included
    load: Load | None


class Overview(BaseModel):
    """What a tenant sees: its scopes, the engines of its bases, and its jobs by status."""

    tenant: str
    scopes: list[str]
    engines: list[EngineView]
    jobs: dict[Status, int]


async def overview(catalog: Catalog, engines: Engines, jobs: Jobs, asks: Principal) -> Overview:
    """The state of the service, as the one who asks may know it."""
    bases, adapters, counts = await anyio.to_thread.run_sync(
        lambda: (catalog.bases(serve=True), catalog.adapters(), jobs.counts(own=True))
    )
    may = asks.may("admin")
    texts = await texts_of(engines) if may else {}
    resident = await _resident(engines, texts)
    states = engines.states()
    views = []
    for base in bases:
        status = states.get(base.id)
        view = EngineView(
            base=base.name,
            state=status.state if status else "absent",
            restarts=status.restarts if status else 0,
            adapters=sum(adapter.base == base.id for adapter in adapters),
            resident=resident.get(base.id),
            load=load_of(texts[base.id]) if base.id in texts else None,
        )
        views.append(view)
    return Overview(tenant=asks.tenant, scopes=sorted(asks.scopes), engines=views, jobs=counts)


def load_of(exposition: str) -> Load:
    """The figures in an engine's own metrics, those of its data-parallel ranks added up."""
    totals = dict.fromkeys(_FIGURES.values(), 0.0)
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            if name := _FIGURES.get(sample.name):
                totals[name] += sample.value
    return Load(**totals)


async def _resident(engines: Engines, names: Iterable[str]) -> Mapping[str, int]:
    """How many adapters each engine has in memory; one that does not answer is left out."""

    async def count(name: str) -> int | None:
        try:
            found = (await engines.get(name).residency())["adapters"]
        except GraftworkError:
            return None
        return len([adapter for adapter in found if adapter["resident"]])

    names = list(names)
    counts = await asyncio.gather(*map(count, names))
    return {name: n for name, n in zip(names, counts, strict=True) if n is not None}
