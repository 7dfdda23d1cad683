"""The wheel, built from what the Dockerfile copies, works where there are no sources."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "kernels" / "csrc"
PACKAGES = {"service": "service", "pruning": "pruning", "kernels/multilora": "multilora"}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of a wheel that was built from what stage `wheel` of the Dockerfile copies."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    _, _, stage = (ROOT / "Dockerfile").read_text().partition(" AS wheel\n")
    for line in re.findall(r"^COPY (.*)$", stage.partition("\nFROM ")[0], re.MULTILINE):
        *names, _ = line.split()
        for name in names:
            if (ROOT / name).is_dir():
                ignore = shutil.ignore_patterns("__pycache__", "*.so")
                shutil.copytree(ROOT / name, source / name, ignore=ignore)
            else:
                shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*build, "--wheel-dir", str(target), str(source)], check=True)
    (wheel,) = target.glob("graftwork-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target / "unpacked")
    return target / "unpacked"


def test_it_contains_every_file_of_the_packages_and_nothing_else(unpacked: Path):
    expected = {
        f"{package}/{path.relative_to(ROOT / folder)}"
        for folder, package in PACKAGES.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    }
    found = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert {name for name in found if not re.match(r"[^/]*\.(dist-info|data)/", name)} == expected


def test_it_brings_the_sources_of_the_kernels_to_where_their_build_looks(unpacked: Path):
    (data,) = unpacked.glob("*.data/data")
    found = {path.relative_to(data) for path in data.rglob("*") if path.is_file()}
    assert found == {Path("share/graftwork/csrc") / path.name for path in SOURCES.iterdir()}


def test_the_gateway_can_be_imported_from_it_alone_and_makes_its_tables(
    unpacked: Path, tmp_path: Path
):
    script = "import sys; sys.path.insert(0, sys.argv[1]); import service.app; "
    script += "service.app.Catalog('sqlite:///catalog.db').bases(); print(service.app.__file__)"
    run = subprocess.run(
        [sys.executable, "-P", "-c", script, str(unpacked)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(run.stdout.strip()).is_relative_to(unpacked)
