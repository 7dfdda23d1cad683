"""Metrics, for Prometheus to scrape."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.dependencies import EnginesDep, JobsDep, MetricsDep, require

router = APIRouter(tags=["metrics"], dependencies=[require("admin")])


@router.get("/metrics", responses={200: {"content": {"text/plain": {}}}})
async def metrics(engines: EnginesDep, jobs: JobsDep, own: MetricsDep) -> Response:
    """The gateway's metrics, jobs by status, and every engine's metrics labelled with its base."""
    return Response(await own.exposition(engines, jobs), media_type=CONTENT_TYPE_LATEST)
