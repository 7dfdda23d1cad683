"""The gateway: one FastAPI application built from Settings.

Importing this loads neither torch nor vllm; the engines are processes of their own.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import structlog
from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError

from service import console, content, handlers
from service.adapters import Adapters
from service.admission import Admission
from service.authentication import OPEN, Authentication, Authenticator
from service.catalog import Catalog
from service.composer import Composer
from service.connections import Drain
from service.engines import Engines
from service.errors import ErrorBody
from service.files import Files
from service.jobs import Jobs
from service.limits import Limits
from service.metrics import Metrics
from service.middleware import BodyLimit, Observation
from service.proxy import Proxy
from service.routes import (
    adapters,
    aliases,
    audit,
    bases,
    completions,
    compositions,
    files,
    generators,
    health,
    jobs,
    keys,
    metrics,
    models,
    overview,
    planning,
    tenants,
)
from service.settings import Settings
from service.tenants import SCRAPER
from service.verification import Loading

if TYPE_CHECKING:
    from service.tracing import Tracing

_FOLLOW_SECONDS = 0.2  # until a base that a worker published gets its engine
_ROUTERS = (  # first match
    console,
    completions,
    models,
    bases,
    jobs,
    adapters,
    generators,
    compositions,
    files,
    aliases,
    keys,
    tenants,
    planning,
    overview,
    audit,
    health,
    metrics,
)
_log = structlog.get_logger("gateway")


def create_app(
    settings: Settings | None = None,
    engines: Engines | None = None,
    tracing: "Tracing | None" = None,
) -> FastAPI:
    """The gateway's application; without `settings` they come from the environment.

    With `tracing`, requests are traced.
    """
    settings = settings or Settings()
    engines = engines or Engines(settings)
    catalog = Catalog(settings.database, settings.quota)
    errors: dict[int | str, dict[str, Any]] = {
        "4XX": {"model": ErrorBody},
        "5XX": {"model": ErrorBody},
    }
    app = FastAPI(
        title="Graftwork",
        lifespan=_lifespan,
        responses=errors,
        docs_url=None,  # FastAPI's own pages load their scripts from afar
        redoc_url=None,
    )
    state = app.state
    state.settings, state.catalog, state.engines = settings, catalog, engines
    state.metrics, state.drain = Metrics(), Drain()
    state.composer = Composer(settings, catalog, engines, state.metrics)
    state.adapters = Adapters(settings, catalog, engines, state.composer)
    state.files = Files(settings, catalog)
    state.jobs = Jobs(settings, catalog)
    state.admission = Admission(settings, state.metrics)
    parts = (settings, engines, state.composer, Loading(settings), state.admission)
    make = tracing.proxy if tracing else Proxy
    state.proxy = make(*parts, catalog, state.metrics)
    state.authenticator = Authenticator(catalog, settings.host)
    handlers.install(app)
    app.add_middleware(Limits, quota_of=lambda tenant: catalog.of(tenant).quota())
    app.add_middleware(
        BodyLimit,
        upload_limit=settings.upload_limit_bytes,
        limit=settings.body_limit_bytes,
        stall=settings.stall_timeout,
    )
    app.add_middleware(
        Authentication,
        authenticator=state.authenticator,
        open=OPEN | console.OPEN | ({"/metrics": SCRAPER} if settings.metrics_open else {}),
    )
    app.add_middleware(Observation, metrics=state.metrics)
    if tracing:
        tracing.watch(app)
    for module in _ROUTERS:
        app.include_router(module.router)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep one engine per served base while the application runs."""
    state = app.state
    for parent in (state.settings.adapters, state.settings.files):
        await anyio.to_thread.run_sync(content.sweep, parent)
    chores = [
        asyncio.create_task(_follow(state.catalog, state.engines)),
        asyncio.create_task(state.composer.keep_warm()),
        asyncio.create_task(state.composer.keep_merging()),
    ]
    try:
        yield
    finally:
        for chore in chores:
            chore.cancel()
        await asyncio.gather(*chores, return_exceptions=True)
        await state.engines.stop()
        await state.composer.close()
        state.jobs.close()
        state.catalog.close()


async def _follow(catalog: Catalog, engines: Engines) -> None:
    """Hold the engines to the catalog, which workers change as well."""
    followed: int | None = None
    while True:
        try:
            if followed != (revision := await anyio.to_thread.run_sync(catalog.revision.look)):
                served = await anyio.to_thread.run_sync(lambda: catalog.every_base(serve=True))
                await engines.reconcile({base.id: base.path for base in served})
                followed = revision
        except (SQLAlchemyError, OSError) as error:
            _log.warning("the catalog cannot be followed", error=str(error))
        except Exception:  # without a follower no new base would ever be served
            _log.exception("the catalog cannot be followed")
        await asyncio.sleep(_FOLLOW_SECONDS)
