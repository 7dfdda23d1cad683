"""What routes ask for, from the application's state.

None of it waits, so all of it is `async`: FastAPI would send anything else to a thread.
"""

from typing import Annotated, cast

from fastapi import Depends, Request, Response
from fastapi.params import Depends as Dependency

from service.adapters import Adapters
from service.authentication import Authenticator
from service.catalog import Catalog
from service.connections import Drain
from service.engines import Engines
from service.errors import Forbidden
from service.files import Files
from service.jobs import Jobs
from service.metrics import Metrics
from service.proxy import Proxy
from service.tenants import Principal, Scope


def _own_catalog(request: Request) -> Catalog:
    return cast(Catalog, request.app.state.catalog).of(principal_of(request).tenant)


async def _catalog(request: Request) -> Catalog:
    """The catalog as the requester's tenant sees it."""
    return _own_catalog(request)


async def _engines(request: Request) -> Engines:
    return cast(Engines, request.app.state.engines)


async def _adapters(request: Request) -> Adapters:
    return cast(Adapters, request.app.state.adapters).of(_own_catalog(request))


async def _files(request: Request) -> Files:
    return cast(Files, request.app.state.files).of(_own_catalog(request))


async def _jobs(request: Request) -> Jobs:
    jobs = cast(Jobs, request.app.state.jobs)
    return jobs.of(principal_of(request).tenant, _own_catalog(request))


async def _metrics(request: Request) -> Metrics:
    return cast(Metrics, request.app.state.metrics)


async def _authenticator(request: Request) -> Authenticator:
    return cast(Authenticator, request.app.state.authenticator)


async def _drain(request: Request) -> Drain:
    return cast(Drain, request.app.state.drain)


def principal_of(request: Request) -> Principal:
    """Who asks, as the middleware found out."""
    return cast(Principal, request.state.principal)


async def _principal(request: Request) -> Principal:
    return principal_of(request)


async def forward(request: Request) -> Response:
    """The answer of an engine; not a dependency, of which each costs every request time."""
    proxy = cast(Proxy, request.app.state.proxy)
    return await proxy.forward(request, principal_of(request))


class Requirement:
    """That a request's principal has one of these scopes."""

    def __init__(self, scopes: tuple[Scope, ...]):
        self.scopes = scopes

    async def __call__(self, request: Request) -> None:
        if not principal_of(request).may(*self.scopes):
            names = " or ".join(sorted({*self.scopes, "admin"}))
            raise Forbidden(f"the API key lacks the scope for this; it takes {names}")


def require(*scopes: Scope) -> Dependency:
    """What every route declares: the scopes of which any one admits to it, beside `admin`."""
    return Depends(Requirement(scopes))  # type: ignore[no-any-return]


PrincipalDep = Annotated[Principal, Depends(_principal)]
AuthenticatorDep = Annotated[Authenticator, Depends(_authenticator)]
CatalogDep = Annotated[Catalog, Depends(_catalog)]
DrainDep = Annotated[Drain, Depends(_drain)]
EnginesDep = Annotated[Engines, Depends(_engines)]
AdaptersDep = Annotated[Adapters, Depends(_adapters)]
FilesDep = Annotated[Files, Depends(_files)]
JobsDep = Annotated[Jobs, Depends(_jobs)]
MetricsDep = Annotated[Metrics, Depends(_metrics)]
