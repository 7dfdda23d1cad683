"""What routes ask for, from the application's state."""

from typing import Annotated, cast

from fastapi import Depends, Request

from service.adapters import Adapters
from service.catalog import Catalog
from service.engines import Engines
from service.files import Files
from service.jobs import Jobs
from service.metrics import Metrics
from service.proxy import Proxy


def _catalog(request: Request) -> Catalog:
    return cast(Catalog, request.app.state.catalog)


def _engines(request: Request) -> Engines:
    return cast(Engines, request.app.state.engines)


def _adapters(request: Request) -> Adapters:
    return cast(Adapters, request.app.state.adapters)


def _files(request: Request) -> Files:
    return cast(Files, request.app.state.files)


def _jobs(request: Request) -> Jobs:
    return cast(Jobs, request.app.state.jobs)


def _proxy(request: Request) -> Proxy:
    return cast(Proxy, request.app.state.proxy)


def _metrics(request: Request) -> Metrics:
    return cast(Metrics, request.app.state.metrics)


CatalogDep = Annotated[Catalog, Depends(_catalog)]
EnginesDep = Annotated[Engines, Depends(_engines)]
AdaptersDep = Annotated[Adapters, Depends(_adapters)]
FilesDep = Annotated[Files, Depends(_files)]
JobsDep = Annotated[Jobs, Depends(_jobs)]
ProxyDep = Annotated[Proxy, Depends(_proxy)]
MetricsDep = Annotated[Metrics, Depends(_metrics)]
