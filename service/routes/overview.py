"""The overview: engines, adapters and jobs at a glance."""

from fastapi import APIRouter

from service.dependencies import CatalogDep, EnginesDep, JobsDep, PrincipalDep, require
from service.overview import Overview, overview

router = APIRouter(tags=["overview"], dependencies=[require("infer", "adapters", "jobs")])


@router.get("/v1/overview")
async def get_overview(
    catalog: CatalogDep, engines: EnginesDep, jobs: JobsDep, asks: PrincipalDep
) -> Overview:
    """What runs and what it does; figures of engines only with the scope that reads metrics."""
    return await overview(catalog, engines, jobs, asks)
