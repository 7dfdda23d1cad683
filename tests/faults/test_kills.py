"""A stream of jobs and uploads whose worker, gateway and engine are killed at random moments."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "reliability.py"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_kill_loses_or_doubles_a_job_or_leaves_anything_in_part(tmp_path: Path):
    result = tmp_path / "result.json"
    command = [sys.executable, SCRIPT, "--only", "kills", "--kills", "40", "--json", result]
    own = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    subprocess.run(command, check=True, cwd=tmp_path, env=own)
    (row,) = json.loads(result.read_text())["rows"]
    assert row["kills"] == 40
    assert row["jobs"] > 0
    assert row["uploads"] > 0
    wrong = ("jobs_lost", "jobs_doubled", "half_visible", "uploads_lost", "findings")
    assert {name: row[name] for name in wrong} == dict.fromkeys(wrong, 0)
    assert row["refused"] == []
