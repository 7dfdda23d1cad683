"""The documentation as a site: it builds without a warning, its reference leaves nothing out."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from typer.main import get_command

from pruning.methods import ENTRIES
from pruning.recipe import Recipe
from service.cli import app

pytest.importorskip("material", reason="needs mkdocs-material")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What mkdocs builds, every warning being an error."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert "WARNING" not in run.stderr
    return target


@pytest.fixture(scope="module")
def reference() -> dict[str, str]:
    """The generated pages."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts/reference.py")
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pages: dict[str, str] = module.pages()
    return pages


def test_the_site_builds_and_every_page_is_in_the_menu(site: Path):
    menu = str(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    for page in (ROOT / "docs").glob("*.md"):
        assert f"'{page.name}'" in menu
        assert (site / f"{page.stem}.html").is_file()


def test_no_page_fetches_anything_from_afar(site: Path):
    for page in site.rglob("*.html"):
        loaded = [part.split('"')[0] for part in page.read_text().split('src="')[1:]]
        assert not [source for source in loaded if source.startswith(("http", "//"))]


def test_the_reference_has_every_method_field_and_command(reference: dict[str, str]):
    for entry in ENTRIES:
        assert f"### `{entry.name}`" in reference["methods"]
        assert entry.paper.url in reference["methods"]
    for field in Recipe.model_fields:
        assert f"| `{field}` |" in reference["recipe"]
    for name in get_command(app).commands:  # type: ignore[attr-defined]
        assert f"## `graftwork {name}" in reference["commands"]
    assert "graftwork_requests_total" in reference["metrics"]
    assert "## `POST /v1/pruning/jobs`" in reference["requests"]
