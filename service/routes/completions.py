"""Completions: OpenAI's routes that generate, answered by the engine of the model."""

from typing import Any

from fastapi import APIRouter, Request, Response

from service.dependencies import forward, require

router = APIRouter(prefix="/v1", tags=["completions"], dependencies=[require("infer")])
_STREAMS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}


@router.post("/completions", responses=_STREAMS)
async def completions(request: Request) -> Response:
    """Complete a prompt; takes everything that vLLM's endpoint takes, streaming included."""
    return await forward(request)


@router.post("/chat/completions", responses=_STREAMS)
async def chat_completions(request: Request) -> Response:
    """Answer a conversation; takes everything that vLLM's endpoint takes, streaming included."""
    return await forward(request)
