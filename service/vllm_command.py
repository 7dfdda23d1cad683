"""How a vLLM child is started: its arguments and environment, for this machine (no vllm import)."""

import os
import shlex
import shutil
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

from pruning.geometry import Geometry
from service.settings import Settings

LAUNCH = [sys.executable, "-m", "service.engine.launch"]
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM has kernels for


def arguments(name: str, model: Path, socket: Path, settings: Settings) -> list[str]:
    """The command line of an engine that serves `model` as `name` on a Unix socket."""
    rank = min((r for r in RANKS if r >= settings.engine_max_lora_rank), default=RANKS[-1])
    command = shlex.split(settings.engine_command) or LAUNCH
    command = [*command, "--model", str(model.absolute()), "--served-model-name", name]
    command += ["--uds", str(socket), "--disable-uvicorn-access-log"]
    command += ["--enable-lora", "--max-lora-rank", str(rank)]
    command += ["--max-loras", str(settings.engine_max_loras)]
    command += [
        "--max-cpu-loras",
        str(max(settings.engine_max_cpu_loras, settings.engine_max_loras)),
    ]
    command += ["--lora-target-modules", *Geometry.of(model).architecture.linears]
    if settings.engine_max_model_len is not None:
        command += ["--max-model-len", str(settings.engine_max_model_len)]
    if on_gpu():
        command += ["--attention-backend", "FLASH_ATTN", "--dtype", "auto"]
        command += ["--gpu-memory-utilization", str(settings.engine_gpu_memory)]
    else:
        command += ["--dtype", "float32", "--enforce-eager"]
        command += ["--kv-cache-memory-bytes", str(settings.engine_kv_cache_bytes)]
    return command + shlex.split(settings.engine_args)


def environment(settings: Settings) -> dict[str, str]:
    """The environment of an engine: ours, without telemetry, downloads or surprises from cwd."""
    own = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
    if not on_gpu():
        own |= {
            "OMP_NUM_THREADS": str(settings.engine_threads),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
    return {**os.environ, **own}


@cache
def on_gpu() -> bool:
    """Whether engines run on a GPU: there is one, and the installed vLLM is not the CPU build."""
    if any(metadata.distributions(name="vllm-cpu")):
        return False
    if Path("/dev/nvidia0").exists():
        return True
    nvidia_smi = shutil.which("nvidia-smi")
    if nvidia_smi is None:
        return False
    listing = subprocess.run([nvidia_smi, "-L"], capture_output=True, text=True, check=False)
    return listing.returncode == 0 and "GPU" in listing.stdout
