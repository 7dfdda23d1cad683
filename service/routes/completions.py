"""Completions: OpenAI's routes that generate, answered by the engine of the model."""

from fastapi import APIRouter, Request, Response

from service.dependencies import CatalogDep, PrincipalDep, ProxyDep, require

router = APIRouter(prefix="/v1", tags=["completions"], dependencies=[require("infer")])


@router.post("/completions")
async def completions(
    request: Request, proxy: ProxyDep, catalog: CatalogDep, asks: PrincipalDep
) -> Response:
    """Complete a prompt; takes everything that vLLM's endpoint takes, streaming included."""
    return await proxy.forward(request, catalog, asks)


@router.post("/chat/completions")
async def chat_completions(
    request: Request, proxy: ProxyDep, catalog: CatalogDep, asks: PrincipalDep
) -> Response:
    """Answer a conversation; takes everything that vLLM's endpoint takes, streaming included."""
    return await proxy.forward(request, catalog, asks)
