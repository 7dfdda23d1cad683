"""Admin endpoints inside the engine: load an adapter, really unload it, say what is resident.

They are the only way in: adapters reach vLLM checked, under a name that never changes content.
"""

import asyncio
import re
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request
from pydantic import BaseModel
from starlette.datastructures import State
from starlette.responses import JSONResponse
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.launchers.launcher import terminate_if_errored
from vllm.lora.request import LoRARequest
from vllm.v1.engine.exceptions import EngineDeadError

from pruning.errors import InvalidInput
from service.engine.composites import MANIFEST
from service.engine.materialise import materialised

DRAIN_SECONDS = 30.0  # how long an unload waits for requests that still use the adapter
POLL_SECONDS = 0.05
RESTART_SECONDS = 30  # what a start takes at least on a small machine
WRAPPED = re.compile("Worker failed with error '(.*)', please check the stack trace", re.DOTALL)

router = APIRouter(prefix="/graftwork/adapters")


class Source(BaseModel):
    """Where an adapter lies: a PEFT directory or a composition's manifest; neither ever changes."""

    path: str


@router.get("")
async def residency(request: Request) -> dict[str, Any]:
    """Every adapter that requests may name, and whether it is in the engine's memory.

    `unnamed` counts adapters in memory that no request can name; it is zero.
    """
    state = request.app.state
    loaded: dict[str, LoRARequest] = state.openai_serving_models.lora_requests
    resident = set(await state.engine_client.list_loras())
    return {
        "adapters": [
            {"name": name, "path": lora.lora_path, "resident": lora.lora_int_id in resident}
            for name, lora in loaded.items()
        ],
        "unnamed": len(resident - {lora.lora_int_id for lora in loaded.values()}),
    }


@router.put("/{name}")
async def load(name: str, source: Source, request: Request) -> dict[str, Any]:
    """Load an adapter before its first use; 400 with the reason when it does not fit."""
    state = request.app.state
    models = state.openai_serving_models
    async with models.lora_resolver_lock[name]:
        lora = models.lora_requests.get(name)
        path = await _path(source)
        if lora is None:
            lora = LoRARequest(name, models.lora_id_counter.inc(1), path)
            await _add(state.engine_client, lora)
            models.lora_requests[name] = lora
        elif lora.lora_path != path:
            raise HTTPException(409, f"{name} is loaded from {lora.lora_path}")
    return {"name": name, "path": path}


async def _path(source: Source) -> str:
    """What vLLM loads; for a composition that must be built first, what was built."""
    if not source.path.endswith(MANIFEST):
        return source.path
    try:
        return str(await asyncio.to_thread(materialised, Path(source.path)))
    except (InvalidInput, OSError) as error:
        raise HTTPException(400, str(error)) from error


async def _add(engine: EngineClient, lora: LoRARequest) -> None:
    try:
        await engine.add_lora(lora)
    except EngineDeadError:
        raise
    except Exception as error:  # the engine core sends every refusal as a bare Exception
        wrapped = WRAPPED.search(str(error))
        raise HTTPException(400, wrapped[1] if wrapped else str(error)) from error


@router.delete("/{name}")
async def unload(name: str, request: Request) -> dict[str, Any]:
    """Forget an adapter and free its memory, once the requests that use it are done."""
    state = request.app.state
    lora = state.openai_serving_models.lora_requests.pop(name, None)
    if lora is None:
        raise HTTPException(404, f"{name} is not loaded")
    await _drain(state.engine_client, name)
    return {"name": name, "removed": await state.engine_client.remove_lora(lora.lora_int_id)}


async def _drain(engine: Any, name: str) -> None:
    """Wait for the requests that use an adapter; abort those that take too long.

    Removed under a running request, the adapter would come back, or kill the engine if its files
    are gone by then.
    """
    deadline = time.monotonic() + DRAIN_SECONDS
    while running := [
        id_ for id_, state in engine.output_processor.request_states.items()
        if state.lora_name == name
    ]:  # fmt: skip
        if time.monotonic() > deadline:
            await engine.abort(running, internal=True)
        await asyncio.sleep(POLL_SECONDS)


def _dead(request: Request, error: Exception) -> JSONResponse:
    """503 instead of vLLM's 500: the supervisor is about to start the engine again."""
    state = request.app.state
    terminate_if_errored(server=state.server, engine=state.engine_client)
    message = "the engine has stopped and is being started again"
    return JSONResponse(
        {"error": {"message": message, "type": "server_error", "code": "engine_unavailable"}},
        status_code=503,
        headers={"Retry-After": str(RESTART_SECONDS)},
    )


class Admin:
    """vLLM's EndpointPlugin protocol."""

    name = "graftwork_admin"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        app.include_router(router)
        app.add_exception_handler(EngineDeadError, _dead)

    async def init_state(self, engine_client: EngineClient, state: State, args: Namespace) -> None:
        """Nothing to prepare: the endpoints use what vLLM keeps in the app's state."""


def endpoint_plugin() -> Admin:
    """vLLM's `endpoint_plugins` entry point."""
    return Admin()
