"""Compositions in the engines: loaded before their first use, kept while used, bounded in number.

An engine gets a manifest, small JSON that names the adapters of a sum by their immutable paths.
The exact sum is nothing more than that; every other strategy is built once into a plain adapter,
which stays on disk for the next time.  What was loaded is copied into host memory, from where it
is loaded again.  An exact sum that is asked for again and again becomes, in the background, one
plain adapter as well.  All names and paths carry the digest of what they stand for, so that no
cache, vLLM's prefix cache included, can mistake one content for another.
"""

import asyncio
import contextlib
import json
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import anyio.to_thread
import structlog
from sqlalchemy.exc import SQLAlchemyError

from pruning.errors import InvalidInput
from service.catalog import Catalog
from service.composition_store import CompositionStore
from service.engines import Engine, Engines
from service.errors import EngineUnavailable, GraftworkError, NotFound
from service.memory_tier import MemoryTier
from service.metrics import Metrics
from service.models import Composed, Model, served
from service.records import Adapter
from service.repeats import Merges
from service.settings import Settings
from service.verification import Loading

_WARM_SECONDS = 1.0  # between looks for pinned compositions that are not loaded
_Key = tuple[str, str]  # base, name inside its engine
_log = structlog.get_logger("composer")


@dataclass
class _Entry:
    """A composition that an engine has, or is getting."""

    source: Path  # what the engine loads: a manifest, or what was built and is in memory
    tier: str  # where that was found
    adapters: frozenset[str]  # digests
    files: Mapping[str, Path]  # what the engine reads, now or when it reads again, by digest
    users: int = 0
    leaving: asyncio.Task[None] | None = field(default=None)


class Composer:
    """Sees to it that an engine has a composition while a request uses it."""

    def __init__(self, settings: Settings, catalog: Catalog, engines: Engines, metrics: Metrics):
        self._loading = Loading(settings)
        self._settings = settings
        self._catalog = catalog
        self._engines = engines
        self._metrics = metrics
        self._store = CompositionStore(settings)
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()  # least recently used first
        self._pinned: frozenset[_Key] = frozenset()
        self._memory = MemoryTier(settings)
        self._merges = Merges(settings, self._store)
        self._copies: set[asyncio.Task[None]] = set()
        self._evictions = 0
        metrics.watch_compositions(
            lambda: len(self._entries),
            {"memory": lambda: self._memory.bytes, "disk": lambda: self._store.bytes},
            {
                "engine": lambda: self._evictions,
                "memory": lambda: self._memory.evictions,
                "disk": lambda: self._store.evictions,
            },
        )

    @contextlib.asynccontextmanager
    async def hold(self, engine: Engine, model: Model) -> AsyncIterator[str]:
        """Keep a composition loaded for as long as the context lasts; what its engine calls it.

        Raises InvalidInput for more atoms than an engine takes, AdapterRejected when it cannot
        take an adapter, EngineUnavailable when it goes down.
        """
        async with self._held_as(engine, self._merges.form(model)) as name:
            self._merges.count(model)
            yield name

    @contextlib.asynccontextmanager
    async def _held_as(self, engine: Engine, model: Model) -> AsyncIterator[str]:
        """The same, in this very form."""
        assert model.composed is not None
        self._check(model.composed)
        key = (engine.name, model.engine_name)
        entry = await self._entry(key, model, model.composed)
        entry.users += 1
        self._entries.move_to_end(key)
        try:
            await self._load(engine, model, entry)
            yield model.engine_name
        finally:
            entry.users -= 1
            if not (entry.users or entry.leaving or engine.holds(model.engine_name)):
                self._discard(key)
            self._leave_if_merged(model)
            self._trim(engine.name)

    async def forget(self, adapter: Adapter) -> None:
        """Unload every composition of an adapter that is going, once nothing uses it."""
        keys = [
            key
            for key, entry in self._entries.items()
            if key[0] == adapter.base and adapter.digest in entry.adapters
        ]
        await asyncio.gather(*(self._leave(key) for key in keys))
        if adapter.digest not in self._held():
            self._memory.remove(adapter.digest)

    async def keep_warm(self) -> None:
        """Hold pinned compositions in their engines, for as long as the gateway runs."""
        while True:
            try:
                models = await anyio.to_thread.run_sync(self._pinned_models)
                self._pinned = frozenset((model.base.id, model.engine_name) for model in models)
                for model in models:
                    await self._warm(model)
            except (SQLAlchemyError, GraftworkError) as error:
                _log.warning("pinned compositions cannot be read", error=str(error))
            await asyncio.sleep(_WARM_SECONDS)

    async def keep_merging(self) -> None:
        """Merge sums that are asked for again and again, one at a time, as long as it runs."""
        while True:
            model = await self._merges.next()
            self._metrics.observe_merge(await self._merge(model))

    async def _merge(self, model: Model) -> str:
        """Build and load a sum as one plain adapter; how that went."""
        assert model.composed is not None
        try:
            engine = self._engines.get(model.base.id)
            async with self._held_as(engine, model.merged):
                self._merges.done(model)
        except (NotFound, EngineUnavailable):
            self._merges.postpone(model)
            return "interrupted"
        except (GraftworkError, InvalidInput, OSError) as error:
            _log.warning("a composition is not merged", model=model.id, error=str(error))
            await anyio.to_thread.run_sync(self._store.remove, model.composed.digest)
            return "failed"
        self._leave_if_merged(model)
        return "done"

    def _leave_if_merged(self, model: Model) -> None:
        """Let a sum go once requests get it as a plain adapter and none has it as a sum."""
        key = model.base.id, model.engine_name
        entry = self._entries.get(key)
        if entry and not entry.users and self._merges.form(model).engine_name != model.engine_name:
            self._leave(key)

    async def close(self) -> None:
        """Give the memory back; no engine runs any more."""
        await self._memory.close()
        await asyncio.gather(*self._copies)

    def _pinned_models(self) -> list[Model]:
        return [
            self._merges.form(model)
            for tenant in self._catalog.tenants_with_pins()
            for model in served(self._catalog.of(tenant))
            if model.composed and model.composed.pinned
        ]

    async def _warm(self, model: Model) -> None:
        """Load a pinned composition; what stands in the way of one does not hold up the others."""
        try:
            engine = self._engines.get(model.base.id)
            if not engine.holds(model.engine_name):
                async with self._held_as(engine, model):
                    pass
        except (NotFound, EngineUnavailable):
            pass  # its engine starts; there is a next time
        except (GraftworkError, InvalidInput, OSError) as error:
            _log.warning("a pinned composition is not loaded", model=model.id, error=str(error))

    async def _entry(self, key: _Key, model: Model, composed: Composed) -> _Entry:
        while (entry := self._entries.get(key)) is not None and entry.leaving is not None:
            await asyncio.wait([entry.leaving])
        if entry is None:
            entry = self._entries[key] = self._found(model, composed)
        return entry

    def _found(self, model: Model, composed: Composed) -> _Entry:
        """What an engine is to load, from where it is nearest."""
        adapters = frozenset(adapter.digest for adapter in composed.adapters)
        if not composed.built:
            kept = {digest: self._memory.find(digest) for digest in adapters}
            paths = {a.digest: kept[a.digest] or a.path for a in composed.adapters}
            tier = "memory" if all(kept.values()) else "disk"
            files = {a.digest: a.path for a in composed.adapters}
        else:
            files = {composed.digest: self._store.directory(composed.digest)}
            if (built := self._memory.find(composed.digest)) is not None:
                self._store.touch(composed.digest)
                return _Entry(built, "memory", adapters, files)
            paths = {a.digest: a.path for a in composed.adapters}
            tier = "disk" if self._store.has(composed.digest) else "none"
        manifest = self._store.manifest(model.engine_name)
        write(manifest, model, composed, paths, self._store)
        return _Entry(manifest, tier, adapters, files)

    def _held(self) -> set[str]:
        """Digests of everything that engines read."""
        return {digest for entry in self._entries.values() for digest in entry.files}

    def _check(self, composed: Composed) -> None:
        most = self._settings.engine_max_lora_rank
        if composed.composition.exact and composed.rank > most:
            raise InvalidInput(
                "model",
                f"the adapters have rank {composed.rank} together, the engine takes {most}; "
                f"take fewer, or a strategy that keeps to a rank, as {most} in @svd:{most}",
            )

    async def _load(self, engine: Engine, model: Model, entry: _Entry) -> None:
        if engine.holds(model.engine_name):
            self._metrics.observe_composition("engine")
            return
        if entry.tier != "memory" and model.composed is not None:
            for adapter in model.composed.adapters:
                await anyio.to_thread.run_sync(self._loading.check, adapter)
        started = time.perf_counter()
        if not await engine.ensure_adapter(model.engine_name, entry.source):
            self._metrics.observe_composition("shared")
            return
        self._metrics.observe_composition(entry.tier, time.perf_counter() - started)
        if entry.tier == "none":
            entry.tier = "disk"  # if its engine starts again
            await anyio.to_thread.run_sync(self._store.trim, self._held())
        if entry.tier != "memory":
            self._copy(entry)

    def _copy(self, entry: _Entry) -> None:
        """Keep what was loaded in memory, for the time when the engine has let it go."""

        async def add() -> None:
            for digest, path in entry.files.items():
                await self._memory.add(digest, path, self._held)

        copy = asyncio.create_task(add())
        self._copies.add(copy)
        copy.add_done_callback(self._copies.discard)

    def _trim(self, base: str) -> None:
        """Let the least recently used go until there are no more than the settings allow."""
        staying = [
            key
            for key, entry in self._entries.items()
            if key[0] == base and entry.leaving is None and key not in self._pinned
        ]
        idle = [key for key in staying if not self._entries[key].users]
        for key in idle[: max(0, len(staying) - self._settings.composition_limit)]:
            self._evictions += 1
            self._leave(key)

    def _leave(self, key: _Key) -> asyncio.Task[None]:
        entry = self._entries[key]
        if entry.leaving is None:
            entry.leaving = asyncio.create_task(self._unload(key))
        return entry.leaving

    async def _unload(self, key: _Key) -> None:
        base, name = key
        try:
            await self._engines.get(base).unload_adapter(name)
        except (NotFound, EngineUnavailable):
            pass  # an engine that does not run holds nothing
        finally:
            self._discard(key)

    def _discard(self, key: _Key) -> None:
        if self._entries.pop(key, None) is not None:
            self._store.manifest(key[1]).unlink(missing_ok=True)


def write(
    manifest: Path,
    model: Model,
    composed: Composed,
    paths: Mapping[str, Path],
    store: CompositionStore,
) -> None:
    """Tell an engine what a composition is made of, whose adapters lie at `paths` by digest."""
    content: dict[str, object] = {
        "parts": [
            {
                "name": adapter.name,
                "content": adapter.digest,
                "path": str(paths[adapter.digest].absolute()),
                "weight": part.weight,
            }
            for adapter, part in zip(composed.adapters, composed.composition.parts, strict=True)
        ]
    }
    if composed.composition.period:
        content["period"] = composed.composition.period
    if composed.built:
        content |= {
            "strategy": composed.composition.strategy.model_dump(mode="json"),
            "base": str(model.base.path.absolute()),
            "destination": str(store.directory(composed.digest)),
        }
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps(content))
