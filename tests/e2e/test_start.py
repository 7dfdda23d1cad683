"""The start guide and the README: every block of them, run as it stands beside a server."""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "deploy" / "demo"
ADDRESS = "http://127.0.0.1:8000"


def blocks(page: str) -> list[tuple[str, str]]:
    """The language and the text of every block of a page that has no title."""
    text = (ROOT / page).read_text()
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def environment(gateway: str, tmp_path: Path) -> dict[str, str]:
    """Where the command `graftwork` is that of this tree, and asks the gateway."""
    command = tmp_path / "graftwork"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m service.cli "$@"\n')
    command.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "GRAFTWORK_URL": gateway}


def printed(language: str, block: str, directory: Path, environment: dict[str, str]) -> str:
    """What a block prints that ends well."""
    shell = ["bash", "-euo", "pipefail", "-c"] if language == "sh" else [sys.executable, "-c"]
    block = block.replace(ADDRESS, environment["GRAFTWORK_URL"])
    run = subprocess.run(
        [*shell, block], cwd=directory, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, f"{block}\n{run.stderr}"
    return run.stdout


@pytest.mark.engine
def test_every_block_of_the_start_guide_runs(environment: dict[str, str]):
    found = blocks("docs/start.md")
    assert len(found) >= 6
    told = "".join(printed(*block, ROOT, environment) for block in found)
    assert "demo-slim+clinc150" in told
    assert "nats per token over demo" in told
    assert "assistant stands for demo-slim, before for demo" in told


@pytest.mark.slow
@pytest.mark.engine
def test_every_block_of_the_readme_runs(gateway: str, environment: dict[str, str], tmp_path: Path):
    (make, curl, own, recipe) = blocks("README.md")
    targets = re.sub("^make", "make --dry-run", make[1], flags=re.MULTILINE)
    assert "graftwork demo" in printed("sh", targets, ROOT, environment)  # which has its own test
    assert '"text"' in printed(*curl, ROOT, environment)

    for name, text in (("some", "calibration"), ("other", "evaluation")):
        (tmp_path / f"{name}-text.txt").write_bytes((DEMO / "text" / f"{text}.txt").read_bytes())
    (tmp_path / "recipe.yaml").write_text(recipe[1])
    serve, *commands = own[1].splitlines(keepends=True)
    assert serve.startswith("graftwork serve ")  # the gateway
    typed = "".join(commands).replace("/models/my-llama", str(DEMO / "base"))
    typed = typed.replace("/models/sql-lora", str(DEMO / "adapters" / "wikisql"))
    assert "my-llama-slim+sql" in printed("sh", typed, tmp_path, environment)
    with httpx.Client(base_url=gateway, timeout=60) as client:
        for model in ("my-llama-slim+sql", "my-llama-slim", "my-llama+sql", "my-llama"):
            kind = "adapters" if "+" in model else "bases"
            assert client.delete(f"/v1/{kind}/{model}").is_success, model
