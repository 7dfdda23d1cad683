"""The container and monitoring files: what they name exists, and their own tools accept them."""

import asyncio
import json
import re
import shlex
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.main import get_command

from service.app import create_app
from service.cli import app
from service.settings import Settings

ROOT = Path(__file__).parent.parent
STAGES = re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
MANIFESTS = list(yaml.safe_load_all((ROOT / "deploy/kubernetes/graftwork.yaml").read_text()))
PODS = {
    manifest["metadata"]["name"]: manifest["spec"]["template"]["spec"]
    for manifest in MANIFESTS
    if manifest["kind"] == "Deployment"
}
GPU = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text())
RULES = (ROOT / "deploy/prometheus/rules.yml").read_text()
ALL_RULES = [rule for group in yaml.safe_load(RULES)["groups"] for rule in group["rules"]]
DASHBOARDS = {
    path.stem: json.loads(path.read_text())
    for path in sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
}
PANEL = {
    "type": "object",
    "required": ["id", "type", "title", "datasource", "gridPos", "targets", "fieldConfig"],
    "properties": {
        "id": {"type": "integer", "minimum": 1},
        "type": {"enum": ["timeseries", "stat"]},
        "title": {"type": "string", "minLength": 1},
        "gridPos": {
            "type": "object",
            "required": ["x", "y", "w", "h"],
            "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 200},
        },
        "targets": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["refId", "expr"],
                "properties": {"refId": {"pattern": "^[A-Z]$"}, "expr": {"minLength": 1}},
            },
        },
        "fieldConfig": {
            "required": ["defaults"],
            "properties": {"defaults": {"required": ["unit"]}},
        },
    },
}
BOARD = {  # of Grafana's dashboards what ours use
    "type": "object",
    "required": ["uid", "title", "schemaVersion", "panels", "time", "templating", "tags"],
    "properties": {
        "uid": {"type": "string", "pattern": "^[a-z-]{1,40}$"},
        "schemaVersion": {"type": "integer", "minimum": 39},
        "tags": {"contains": {"const": "graftwork"}},
        "panels": {"type": "array", "minItems": 1, "items": PANEL},
    },
}
each_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=DASHBOARDS)

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


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest["kind"])
def test_kubernetes_accepts_the_manifests(manifest: dict[str, Any]):
    schemas = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    schemas.validate(manifest, "1.34", strict=True)


def test_pods_run_commands_and_take_settings_that_exist_and_mount_what_there_is():
    claims = {one["metadata"]["name"] for one in MANIFESTS if "Claim" in one["kind"]}
    for pod in PODS.values():
        (container,) = pod["containers"]
        program, command = container["command"]
        assert program == "graftwork"
        assert command in get_command(app).commands
        settings = {one["name"]: one.get("value") for one in container["env"]}
        fields = {f"GRAFTWORK_{name.upper()}" for name in Settings.model_fields}
        assert settings.keys() <= fields
        assert container["image"] == COMPOSE["services"][command_service(command)]["image"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys()
        assert volumes["home"]["persistentVolumeClaim"]["claimName"] in claims
        (home,) = [one["mountPath"] for one in container["volumeMounts"] if one["name"] == "home"]
        assert [home] in instructions("VOLUME")


def command_service(command: str) -> str:
    """The service of the compose file that runs a command of ours."""
    (name,) = [
        name
        for name, service in COMPOSE["services"].items()
        if service.get("command", [""])[-1] == command
    ]
    return str(name)


def test_pods_are_probed_where_the_gateway_answers_and_get_the_time_that_it_drains(
    own_routes: set[str],
):
    (container,) = PODS["gateway"]["containers"]
    (port,) = container["ports"]
    assert port["containerPort"] == Settings.model_fields["port"].default
    for probe in ("livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] == port["name"]
        assert container[probe]["httpGet"]["path"] in own_routes
    (service,) = [one for one in MANIFESTS if one["kind"] == "Service"]
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    (gateway,) = [
        one for one in MANIFESTS if one["metadata"]["name"] == "gateway" and one != service
    ]
    assert (
        gateway["spec"]["template"]["metadata"]["labels"].items()
        >= service["spec"]["selector"].items()
    )
    delay = next(float(one["value"]) for one in container["env"] if "DRAIN" in one["name"])
    drained = delay + Settings.model_fields["drain_timeout"].default
    assert PODS["gateway"]["terminationGracePeriodSeconds"] >= drained + 10
    assert all(pod["enableServiceLinks"] is False for pod in PODS.values())


def test_every_service_tells_whether_it_is_healthy():
    for name, service in COMPOSE["services"].items():
        assert "healthcheck" in service or "build" in service, name
    assert instructions("HEALTHCHECK")


@pytest.fixture(scope="module")
def own_routes(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The paths that a gateway answers."""
    gateway = create_app(Settings(home=tmp_path_factory.mktemp("home")))
    gateway.state.jobs.close()
    gateway.state.catalog.close()
    return set(gateway.openapi()["paths"])


@pytest.fixture(scope="module")
def own_metrics(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the samples that a gateway exposes of its own."""
    gateway = create_app(Settings(home=tmp_path_factory.mktemp("home")))
    state = gateway.state
    text = asyncio.run(state.metrics.exposition(state.engines, state.jobs)).decode()
    state.jobs.close()
    state.catalog.close()
    suffixes = {"counter": "", "histogram": "_bucket", "gauge": ""}
    types = re.findall(r"^# TYPE (graftwork_\w+) (\w+)$", text, re.MULTILINE)
    return {name + suffixes[kind] for name, kind in types}


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


def names(text: str) -> set[str]:
    """Metrics and recorded rules that queries name."""
    return set(re.findall(r"\b(?:graftwork[_:]|vllm:)[a-z0-9_:]+", text))


@pytest.mark.parametrize(
    "text", [RULES, *map(json.dumps, DASHBOARDS.values())], ids=["rules", *DASHBOARDS]
)
def test_dashboards_and_rules_ask_for_metrics_that_exist(text: str, own_metrics: set[str]):
    recorded = {rule["record"] for rule in ALL_RULES if "record" in rule}
    declared = engine_metrics()
    for name in names(text) - recorded:
        if name.startswith("graftwork_"):
            assert name in own_metrics, name
        else:
            assert f'"{re.sub("_(total|bucket)$", "", name)}"' in declared, name


def test_every_metric_of_the_gateway_is_on_a_dashboard(own_metrics: set[str]):
    shown = names("".join(map(json.dumps, DASHBOARDS.values())))
    shown |= names(RULES)
    assert own_metrics <= shown


@each_dashboard
def test_a_dashboard_is_one_and_its_panels_do_not_overlap(dashboard: dict[str, Any]):
    jsonschema.validate(dashboard, BOARD)
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) < 24


def test_dashboards_have_names_of_their_own_and_the_first_is_at_home():
    assert len({board["uid"] for board in DASHBOARDS.values()}) == len(DASHBOARDS)
    home = COMPOSE["services"]["grafana"]["environment"][
        "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"
    ]
    assert Path(home).stem in DASHBOARDS


def test_every_alert_says_what_is_wrong_and_what_to_do():
    for rule in ALL_RULES:
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("page", "warn")
            assert rule["annotations"].keys() == {"summary", "action"}


@needs_promtool
def test_alerts_fire_when_they_should_and_not_before(tmp_path: Path):
    (tmp_path / "rules.yml").write_text(RULES)
    (tmp_path / "tests.yml").write_text((ROOT / "deploy/prometheus/rules_test.yml").read_text())
    command = ["promtool", "test", "rules", tmp_path / "tests.yml"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@needs_promtool
def test_prometheus_accepts_its_configuration():
    config = ROOT / "deploy/prometheus/prometheus.yml"
    run = subprocess.run(["promtool", "check", "config", config], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@needs_promtool
@each_dashboard
def test_prometheus_accepts_the_queries_of_a_dashboard(dashboard: dict[str, Any], tmp_path: Path):
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = [
        {"record": f"panel:{i}", "expr": query.replace("$__rate_interval", "1m")}
        for i, query in enumerate(queries)
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    run = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@each_dashboard
def test_a_dashboard_reads_the_data_source_that_is_provisioned(dashboard: dict[str, Any]):
    file = ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml"
    (source,) = yaml.safe_load(file.read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}
