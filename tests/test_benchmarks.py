"""Benchmarks that need neither data nor an engine run with --quick, and write figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = (
    "allocators",
    "criteria",
    "latency",
    "memory",
    "merge",
    "order",
    "quality",
    "recovery",
    "reliability",
    "schedules",
    "soak",
    "sweep",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_quick_benchmark_writes_figures(name: str, tmp_path: Path) -> None:
    script, result = ROOT / "benchmarks" / f"{name}.py", tmp_path / "result.json"
    unsafe = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    command = [sys.executable, script, "--quick", "--json", result]  # scripts import their siblings
    done = subprocess.run(command, cwd=tmp_path, env=unsafe, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(result.read_text())
    assert report["name"] == name
    assert report["figures"]
