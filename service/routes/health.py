"""Health: is the process alive, and can everything that should be served be served?"""

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from service import readiness
from service.dependencies import CatalogDep, DrainDep, EnginesDep

router = APIRouter(tags=["health"])


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """`waiting` says what is not ready yet and how it stands with it."""

    ready: bool
    waiting: dict[str, str]


@router.get("/health")
async def health() -> Health:
    """Answer as long as the process can answer."""
    return Health()


@router.get("/ready", responses={503: {"model": Readiness}})
def ready(
    catalog: CatalogDep, engines: EnginesDep, drain: DrainDep, response: Response
) -> Readiness:
    """200 when the database answers and the engine of every served base is ready, else 503.

    503 as well once the gateway has been told to stop.
    """
    waiting = readiness.waiting(catalog, engines, drain)
    response.status_code = 503 if waiting else 200
    return Readiness(ready=not waiting, waiting=waiting)
