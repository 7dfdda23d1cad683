"""The container and monitoring files: what they name exists, and their own tools accept them."""

import json
import re
import shlex
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from service.cli import app
from service.metrics import Metrics
from service.settings import Settings

ROOT = Path(__file__).parent.parent
STAGES = re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
GPU = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text())
RULES = (ROOT / "deploy/prometheus/rules.yml").read_text()
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboards/graftwork.json").read_text())

needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="needs promtool (Debian's package prometheus)"
)


def instructions(name: str) -> list[list[str]]:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith(f"{name} ")]


def ignored(path: str) -> bool:
    allowed = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    return not any(path == entry or path.startswith(f"{entry}/") for entry in allowed)


@pytest.mark.parametrize("words", instructions("COPY"), ids=" ".join)
def test_what_the_image_copies_exists_and_is_sent_to_the_builder(words: list[str]):
    if words[0].startswith("--from="):
        assert words[0].removeprefix("--from=") in STAGES
        return
    for source in words[:-1]:
        assert (ROOT / source).exists()
        assert not ignored(source)


def test_the_image_offers_the_targets_that_compose_builds():
    services = [*COMPOSE["services"].values(), *GPU["services"].values()]
    targets = {service["build"]["target"] for service in services if "build" in service}
    assert targets == {"cpu", "gpu"} <= set(STAGES)


def test_the_image_does_not_run_as_root_nor_in_the_sources():
    assert instructions("USER") == [["graftwork"]]
    assert instructions("WORKDIR")[-1] == ["/data"]


def test_containers_run_commands_that_exist():
    commands = [
        service["command"] for service in COMPOSE["services"].values() if "build" in service
    ]
    for program, command in commands:
        assert program == "graftwork"
        assert command in get_command(app).commands


def test_containers_are_configured_with_settings_that_exist():
    known = {f"GRAFTWORK_{name.upper()}" for name in Settings.model_fields} | {
        "GRAFTWORK_API_KEY",
        "GRAFTWORK_DEMO",
    }
    text = (ROOT / "Dockerfile").read_text() + (ROOT / "docker-compose.yml").read_text()
    assert set(re.findall(r"GRAFTWORK_[A-Z_]+", text)) <= known


def test_mounted_folders_exist():
    mounts = [mount for service in COMPOSE["services"].values() for mount in service["volumes"]]
    for source in {mount.partition(":")[0] for mount in mounts}:
        assert (ROOT / source).exists() if source.startswith("./") else source in COMPOSE["volumes"]


def test_every_service_tells_whether_it_is_healthy():
    for name, service in COMPOSE["services"].items():
        assert "healthcheck" in service or "build" in service, name
    assert instructions("HEALTHCHECK")


def own_metrics() -> set[str]:
    families = Metrics().registry.collect()
    suffixes = {"counter": ["_total"], "histogram": ["_bucket"], "gauge": [""]}
    return {family.name + end for family in families for end in suffixes[family.type]}


def engine_metrics() -> str:
    """The source in which vLLM declares its metrics; without their suffixes."""
    package = find_spec("vllm")
    assert package is not None
    return "".join(
        path.read_text()
        for place in package.submodule_search_locations or ()
        for path in (Path(place) / "v1").rglob("*.py")
        if "prometheus" in path.read_text().lower()
    )


@pytest.mark.parametrize("text", [RULES, json.dumps(DASHBOARD)], ids=["rules", "dashboard"])
def test_dashboard_and_rules_ask_for_metrics_that_exist(text: str):
    named = set(re.findall(r"\b(?:graftwork_|vllm:)[a-z_]+", text))
    own = {name for name in named if name.startswith("graftwork_")}
    declared = engine_metrics()
    assert own <= own_metrics()
    for name in named - own:
        assert f'"{re.sub("_(total|bucket)$", "", name)}"' in declared, name


@needs_promtool
def test_prometheus_accepts_its_configuration():
    config = ROOT / "deploy/prometheus/prometheus.yml"
    run = subprocess.run(["promtool", "check", "config", config], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@needs_promtool
def test_prometheus_accepts_the_queries_of_the_dashboard(tmp_path: Path):
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    rules = [
        {"record": f"panel:{i}", "expr": query.replace("$__rate_interval", "1m")}
        for i, query in enumerate(queries)
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    run = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_dashboard_reads_the_data_source_that_is_provisioned():
    file = ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml"
    (source,) = yaml.safe_load(file.read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {source["uid"]}
