"""The start guide: every block of it that is typed beside a server, run as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "start.md").read_text()
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture
def environment(gateway: str, tmp_path: Path) -> dict[str, str]:
    """Where the command `graftwork` is that of this tree, and asks the gateway."""
    command = tmp_path / "graftwork"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m service.cli "$@"\n')
    command.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "GRAFTWORK_URL": gateway}


@pytest.mark.engine
def test_every_block_of_the_start_guide_runs(gateway: str, environment: dict[str, str]):
    assert len(BLOCKS) >= 6
    printed = ""
    for language, block in BLOCKS:
        shell = ["bash", "-euo", "pipefail", "-c"] if language == "sh" else [sys.executable, "-c"]
        run = subprocess.run(
            [*shell, block.replace(ADDRESS, gateway)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, f"{block}\n{run.stderr}"
        printed += run.stdout
    assert "demo-slim+clinc150" in printed
    assert "nats per token over demo" in printed
    assert "assistant stands for demo-slim, before for demo" in printed
