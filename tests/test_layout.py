"""The layout of the packages: what is shipped, and which way imports may go."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = {"service": ROOT / "service", "pruning": ROOT / "pruning"}
PACKAGES["multilora"] = ROOT / "kernels" / "multilora"
SOURCES = [path for root in PACKAGES.values() for path in sorted(root.rglob("*.py"))]
HEAVY = {"torch", "transformers", "vllm", "peft"}


def imports(source: Path) -> list[ast.Import | ast.ImportFrom]:
    tree = ast.parse(source.read_text(), filename=str(source))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def test_the_folder_kernels_is_not_a_package():
    """A package of that name would shadow Hugging Face's `kernels`, which transformers imports."""
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_every_folder_with_python_files_is_a_package_that_the_wheel_contains():
    config = PROJECT["tool"]["setuptools"]["packages"]["find"]
    shipped = {
        package
        for where in config["where"]
        for package in find_packages(str(ROOT / where), include=config["include"])
    }
    folders = {
        ".".join((name, *path.parent.relative_to(root).parts))
        for name, root in PACKAGES.items()
        for path in root.rglob("*.py")
    }
    assert folders <= shipped


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_opens_with_a_sentence_and_imports_absolutely(source: Path):
    tree = ast.parse(source.read_text())
    assert not tree.body or ast.get_docstring(tree), "a file opens with one sentence"
    assert not [node for node in imports(source) if isinstance(node, ast.ImportFrom) and node.level]


def test_the_gateway_starts_without_the_heavy_libraries():
    script = "import json, sys, service.app; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = {name.partition(".")[0] for name in json.loads(run.stdout)}
    assert not loaded & HEAVY


def test_the_engine_of_both_extras_is_the_same_release():
    extras = PROJECT["project"]["optional-dependencies"]
    (cpu,), (gpu,) = extras["cpu"], extras["gpu"]
    script = (ROOT / "scripts" / "install.sh").read_text()
    assert cpu.partition("==")[2] == gpu.partition("==")[2]
    assert f"\nvllm={gpu.partition('==')[2]}\n" in script


def test_the_install_script_and_the_constraints_name_one_torch():
    script = (ROOT / "scripts" / "install.sh").read_text()
    (pinned,) = re.findall(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert f"\ntorch={pinned}\n" in script
