"""Completions: OpenAI's routes that generate, answered by the engine of the model."""

from fastapi import APIRouter, Request, Response

from service.dependencies import ProxyDep

router = APIRouter(prefix="/v1", tags=["completions"])


@router.post("/completions")
async def completions(request: Request, proxy: ProxyDep) -> Response:
    """Complete a prompt; takes everything that vLLM's endpoint takes, streaming included."""
    return await proxy.forward(request)


@router.post("/chat/completions")
async def chat_completions(request: Request, proxy: ProxyDep) -> Response:
    """Answer a conversation; takes everything that vLLM's endpoint takes, streaming included."""
    return await proxy.forward(request)
