"""The command line against a real gateway; nothing is served, so no engine is needed."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
import yaml
from structlog.testing import capture_logs
from typer.main import get_command
from typer.testing import CliRunner, Result

from service.app import create_app
from service.cli import app
from service.settings import Settings

RECIPE: dict[str, Any] = {
    "name": "tiny-slim",
    "base": "tiny",
    "target": 0.2,
    "ffn_multiple": 4,
    "calibration": {"file": "words.txt", "sequences": 2, "length": 8},
    "evaluation": {"file": "words.txt", "sequences": 2, "length": 8},
}

Run = Callable[..., Result]


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """The address of a gateway with a home of its own."""
    server = uvicorn.Server(
        uvicorn.Config(create_app(Settings(home=tmp_path / "home")), port=0, log_level="warning")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with capture_logs():  # they would stand among the output of the commands
        yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def run(url: str) -> Run:
    """Run `graftwork` with these words against the gateway."""

    def run(*words: object) -> Result:
        return CliRunner(env={"GRAFTWORK_URL": url}).invoke(app, [str(word) for word in words])

    return run


@pytest.fixture
def tiny(run: Run, base_directory: Path) -> None:
    """A registered base, not served."""
    assert run("bases", "add", "tiny", base_directory, "--no-serve").exit_code == 0


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    """Write a recipe with some entries changed, and the text that it names beside it."""

    def write(**changes: Any) -> Path:
        (tmp_path / "words.txt").write_text("the quick brown fox " * 50)
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | changes))
        return tmp_path / "recipe.yaml"

    return write


def graftwork(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "service.cli", *words],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def assert_one_clear_line(error: str, *parts: str) -> None:
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for part in parts:
        assert part in error


# bases, adapters, models


def test_a_base_is_registered_listed_and_removed(run: Run, tiny: None):
    (base,) = json.loads(run("bases", "list", "--json").stdout)
    assert base["id"] == "tiny"
    assert not base["serve"]
    assert "not served" in run("bases", "list").stdout
    assert run("bases", "remove", "tiny").stdout == "removed tiny\n"
    assert json.loads(run("bases", "list", "--json").stdout) == []


def test_an_adapter_is_uploaded_listed_and_removed(run: Run, tiny: None, adapter_directory: Path):
    added = run("adapters", "add", "sql", adapter_directory, "--base", "tiny")
    assert added.stdout.startswith("tiny+sql: rank 2")
    (adapter,) = json.loads(run("adapters", "list", "--base", "tiny", "--json").stdout)
    assert adapter["id"] == "tiny+sql"
    assert run("adapters", "remove", "tiny+sql").stdout == "removed tiny+sql\n"
    assert json.loads(run("adapters", "list", "--json").stdout) == []


def test_an_empty_list_says_how_to_fill_it(run: Run):
    for words in (["bases", "list"], ["adapters", "list"], ["models"], ["jobs", "list"]):
        assert "graftwork" in run(*words).stdout


def test_a_long_name_is_printed_whole_into_a_pipe(run: Run, base_directory: Path):
    name = "n" * 63
    run("bases", "add", name, base_directory, "--no-serve")
    assert name in run("bases", "list").stdout


def test_pickled_weights_are_refused_by_name(run: Run, tiny: None, adapter_directory: Path):
    (adapter_directory / "adapter_model.safetensors").rename(
        adapter_directory / "adapter_model.bin"
    )
    refused = run("adapters", "add", "sql", adapter_directory, "--base", "tiny")
    assert refused.exit_code == 1
    assert_one_clear_line(refused.stderr, "adapter_model.bin", "pickled")


# pruning jobs


def test_a_recipe_is_submitted_with_its_texts_uploaded(run: Run, tiny: None, write_recipe: Any):
    submitted = run("prune", write_recipe())
    assert submitted.exit_code == 0, submitted.output
    (job,) = json.loads(run("jobs", "list", "--json").stdout)
    assert job["id"] in submitted.stdout
    assert job["status"] == "queued"
    assert job["recipe"]["calibration"]["file"].startswith("file-")
    shown = run("jobs", "show", job["id"]).stdout
    assert f"follow it with: graftwork jobs events {job['id']} --follow" in shown


def test_a_training_text_is_uploaded_as_well(run: Run, tiny: None, write_recipe: Any):
    training = {"file": "words.txt", "sequences": 2, "length": 8}
    submitted = run("prune", write_recipe(training=training))
    assert submitted.exit_code == 0, submitted.output
    (job,) = json.loads(run("jobs", "list", "--json").stdout)
    assert job["recipe"]["training"]["file"] == job["recipe"]["calibration"]["file"]


def test_the_sources_of_a_mixture_are_uploaded_as_well(run: Run, tiny: None, write_recipe: Any):
    sources = [{"file": "words.txt"}, {"file": "words.txt", "weight": 2}]
    submitted = run("prune", write_recipe(calibration={"sources": sources, "length": 8}))
    assert submitted.exit_code == 0, submitted.output
    (job,) = json.loads(run("jobs", "list", "--json").stdout)
    uploaded = [source["file"] for source in job["recipe"]["calibration"]["sources"]]
    assert uploaded == [job["recipe"]["evaluation"]["file"]] * 2


def test_the_texts_of_a_fleet_are_uploaded_as_well(
    run: Run, tiny: None, write_recipe: Any, adapter_directory: Path
):
    run("adapters", "add", "sql", adapter_directory, "--base", "tiny")
    text = {"file": "words.txt", "sequences": 2, "length": 8}
    submitted = run("prune", write_recipe(fleet={"texts": {"sql": text}}))
    assert submitted.exit_code == 0, submitted.output
    (job,) = json.loads(run("jobs", "list", "--json").stdout)
    uploaded = job["recipe"]["fleet"]["texts"]["sql"]["file"]
    assert uploaded == job["recipe"]["calibration"]["file"]


def test_a_queued_job_is_cancelled_and_its_events_end(run: Run, tiny: None, write_recipe: Any):
    id = run("prune", write_recipe()).stdout.splitlines()[0]
    assert run("jobs", "cancel", id).stdout == f"{id}: cancelled\n"
    assert "job cancelled" in run("jobs", "events", id).stdout
    followed = run("jobs", "events", id, "--follow")
    assert followed.exit_code == 1
    assert_one_clear_line(followed.stderr, id, "cancelled")


def test_ctrl_c_without_a_terminal_cancels_the_job(
    run: Run, url: str, tiny: None, write_recipe: Any
):
    waiting = subprocess.Popen(
        [sys.executable, "-P", "-m", "service.cli", "prune", str(write_recipe()), "--wait"],
        env={**os.environ, "GRAFTWORK_URL": url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert waiting.stdout is not None
    id = waiting.stdout.readline().strip()
    time.sleep(2)  # until it follows the job, which is queued: nothing more is printed
    waiting.send_signal(signal.SIGINT)
    _, error = waiting.communicate(timeout=120)
    assert waiting.returncode == 1
    assert_one_clear_line(error, id, "cancelled")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        pytest.param({"target": 1.5}, ["target", "less than 1"], id="target out of range"),
        pytest.param({"tarjet": 0.5}, ["tarjet", "not permitted"], id="unknown field"),
        pytest.param(
            {"calibration": {"file": "gone.txt"}}, ["calibration.file", "gone.txt"], id="no file"
        ),
        pytest.param(
            {"calibration": {"sources": [{"file": "gone.txt"}]}},
            ["calibration.sources.0.file", "gone.txt"],
            id="no source",
        ),
        pytest.param({"base": "tynny"}, ["base", "tynny"], id="unknown base"),
        pytest.param({"criterion": {"name": "guess"}}, ["criterion", "guess"], id="no such method"),
    ],
)
def test_a_bad_recipe_is_one_line_that_names_the_field(
    run: Run, tiny: None, write_recipe: Any, changes: dict[str, Any], parts: list[str]
):
    refused = run("prune", write_recipe(**changes))
    assert refused.exit_code == 1
    assert_one_clear_line(refused.stderr, *parts)
    assert json.loads(run("jobs", "list", "--json").stdout) == []


def test_a_recipe_that_is_not_yaml_is_one_line(run: Run, tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text("name: [")
    assert_one_clear_line(run("prune", tmp_path / "recipe.yaml").stderr, "not YAML")
    assert_one_clear_line(
        run("prune", tmp_path / "none.yaml").stderr, "cannot be read", "docs/recipes.md"
    )


# JSON, completion


def leaves(command: Any, *path: str) -> dict[tuple[str, ...], Any]:
    """Every command of the line that runs something, by its words."""
    if not hasattr(command, "commands"):
        return {path: command}
    found = [leaves(own, *path, name) for name, own in command.commands.items()]
    return {words: leaf for part in found for words, leaf in part.items()}


LEAVES = leaves(get_command(app))
RUNNING = {("serve",), ("worker",), ("demo",)}  # they tell nothing, but go on
FINISHED = {("sweep", "show"), ("bases", "report")}  # of what no job here has made
SOURCES = [{"adapter": "sql"}, {"adapter": "style"}]
RECIPES: dict[str, Any] = {
    "merge": {"name": "m", "base": "tiny", "sources": SOURCES},
    "compress": {"name": "c", "base": "tiny", "source": "sql"},
    "train-generator": {
        "name": "g",
        "base": "tiny",
        "tasks": {one["adapter"]: one for one in SOURCES},
    },
    "train": {"name": "t", "base": "tiny", "training": SOURCES[0]},
    "generate": {"name": "x", "base": "tiny", "generator": "g", "description": "words"},
    "sweep": {**RECIPE, "name": "many", "grid": {"target": [0.1, 0.2]}},
}


def test_whatever_tells_something_tells_it_as_json_too():
    for words, command in LEAVES.items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert ("--json" in options) == (words not in RUNNING), words


def test_every_json_parses(
    run: Run,
    tiny: None,
    write_recipe: Any,
    write_adapter: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("GRAFTWORK_HOME", str(tmp_path / "home"))
    told = set()

    def tell(*words: Any, refused: str = "") -> Any:
        result = run(*words, "--json")
        leaf = words[:2] if words[:2] in LEAVES else words[:1]
        told.add(leaf)
        if refused:
            assert refused in result.stderr, result.output
            return None
        assert result.stdout, result.output
        lines = result.stdout.splitlines() if leaf == ("jobs", "events") else [result.stdout]
        return [json.loads(line) for line in lines][-1]

    def recipe(name: str) -> Path:
        write_recipe()
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(RECIPES[name]))
        return tmp_path / f"{name}.yaml"

    for name in ("sql", "style"):
        directory = write_adapter(tmp_path / name)
        assert tell("adapters", "add", name, directory, "--base", "tiny")["name"] == name
    assert tell("preview", write_recipe())["slim"]["parameters"] > 0
    job = tell("prune", write_recipe())
    assert tell("jobs", "show", job["id"])["recipe"]["name"] == "tiny-slim"
    assert tell("jobs", "cancel", job["id"])["status"] == "cancelled"
    assert tell("jobs", "events", job["id"])["message"] == "job cancelled"
    merging = tell("adapters", "merge", recipe("merge"))
    assert merging["object"] == "adapter.job"
    assert tell("jobs", "checkpoints", merging["id"]) == []
    assert tell("adapters", "compress", recipe("compress"))["recipe"]["kind"] == "compress"
    assert tell("adapters", "compare", "tiny")["recipe"]["adapters"] == "all"
    tell("adapters", "train-generator", recipe("train-generator"), refused="sql")
    tell("adapters", "train", recipe("train"), refused="sql")
    tell("adapters", "generate", recipe("generate"), refused="no generator")
    tell("adapters", "lift", "tiny+sql", refused="no slim base")
    assert tell("sweep", "run", recipe("sweep"))["object"] == "sweep.job"
    assert [one["object"] for one in tell("sweep", "list")] == ["sweep.job"]
    assert len(tell("jobs", "list")) == 5
    assert tell("aliases", "promote", "prod", "tiny")["base"] == "tiny"
    tell("aliases", "rollback", "prod", refused="nothing else before")
    assert tell("aliases", "list")[0]["id"] == "prod"
    assert tell("aliases", "remove", "prod")["deleted"]
    assert tell("adapters", "list")[0]["base"] == "tiny"
    assert tell("adapters", "generators") == tell("models") == []
    assert {one["kind"] for one in tell("methods", "schedule")} == {"schedule"}
    assert tell("adapters", "remove", "tiny+sql")["deleted"]
    assert tell("bases", "list")[0]["id"] == "tiny"
    tell("bases", "remove", "tiny", refused="in use")
    assert tell("bases", "add", "again", tmp_path / "base", "--no-serve")["id"] == "again"
    key = tell("keys", "create", "acme")
    assert key["key"].startswith(f"gw-{key['id']}")
    successor = tell("keys", "rotate", key["id"])
    assert successor["tenant"] == "acme"
    assert tell("keys", "revoke", successor["id"])["revoked"]
    assert len(tell("keys", "list")) == 2
    assert "acme" in [one["tenant"] for one in tell("tenants", "list")]
    assert "tokens_per_minute" in tell("tenants", "quota", "acme")
    assert tell("audit")[0]["action"] == "key.revoke"
    assert tell("verify") == tell("gc") == []
    assert tell("doctor")[0]["what"]
    assert told == set(LEAVES) - RUNNING - FINISHED


def test_a_shell_completes_the_names_of_what_there_is(url: str, tiny: None):
    def completed(address: str) -> list[str]:
        asked = {"COMP_WORDS": "graftwork bases remove t", "COMP_CWORD": "3"}
        asked["_GRAFTWORK_COMPLETE"] = "complete_bash"
        code = "import sys; sys.argv[0] = 'graftwork'; import service.cli; service.cli.main()"
        environment = {**os.environ, **asked, "GRAFTWORK_URL": address}
        run = subprocess.run(
            [sys.executable, "-P", "-c", code], capture_output=True, text=True, env=environment
        )
        return run.stdout.split()

    assert completed(url) == ["tiny"]
    assert completed(f"http://127.0.0.1:{free_port()}") == []


# errors, settings, start


def test_an_absent_server_is_one_line_with_the_command_to_start_one():
    runner = CliRunner(env={"GRAFTWORK_URL": f"http://127.0.0.1:{free_port()}"})
    for words in (["models"], ["jobs", "events", "x", "--follow"]):
        result = runner.invoke(app, words)
        assert result.exit_code == 1
        assert_one_clear_line(result.stderr, "graftwork serve", "--url")


@pytest.mark.parametrize(
    ("words", "listing"),
    [
        ("jobs show none", "graftwork jobs list"),
        ("sweep show none", "graftwork jobs list"),
        ("bases report none", "graftwork bases list"),
        ("aliases rollback none", "graftwork aliases list"),
        ("adapters remove none", "graftwork adapters list"),
        ("adapters remove tiny+none", "graftwork adapters list"),
        ("adapters compare none", "graftwork bases list"),
    ],
)
def test_what_is_not_there_is_one_line_with_the_command_that_lists_what_is(
    run: Run, tiny: None, words: str, listing: str
):
    refused = run(*words.split())
    assert refused.exit_code == 1
    assert_one_clear_line(refused.stderr, "none", f"`{listing}` shows")


def test_a_value_that_cannot_be_is_told_once_where_it_stands(run: Run):
    refused = run("keys", "create", "acme", "--scope", "none")
    assert_one_clear_line(refused.stderr, "scopes.0", "'admin'")
    assert "Tuple" not in refused.stderr


def test_another_server_at_the_address_is_told_apart(tmp_path: Path):
    port = free_port()
    other = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            result = CliRunner().invoke(app, ["models", "--url", f"http://127.0.0.1:{port}"])
            if "no Graftwork server answers" not in result.stderr:
                break
        assert_one_clear_line(result.stderr, "is not a Graftwork server")
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize(
    ("name", "value"),
    [("GRAFTWORK_PORT", "99999"), ("GRAFTWORK_ENGINE_THREADS", "none"), ("GRAFTWORK_HOME", "FILE")],
)
def test_serve_refuses_nonsense_settings_by_name(tmp_path: Path, name: str, value: str):
    (tmp_path / "file").touch()
    value = str(tmp_path / "file") if value == "FILE" else value
    refused = graftwork("serve", **{"GRAFTWORK_HOME": str(tmp_path / "home"), name: value})
    assert refused.returncode == 1
    assert_one_clear_line(refused.stderr, f"{name}={value}")


def test_serve_refuses_to_listen_to_others_without_a_key(tmp_path: Path):
    environment = {"GRAFTWORK_HOST": "0.0.0.0", "GRAFTWORK_PORT": str(free_port())}
    refused = graftwork("serve", GRAFTWORK_HOME=str(tmp_path), **environment)
    assert refused.returncode == 1
    assert_one_clear_line(refused.stderr, "0.0.0.0", "graftwork keys create TENANT --scope admin")


def test_serve_warns_of_a_variable_that_is_no_setting(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        started = graftwork(
            "serve", GRAFTWORK_HOME=str(tmp_path), GRAFTWORK_PORT=port, GRAFTWORK_WORKR="false"
        )
    warning, error = started.stderr.splitlines(keepends=True)
    assert warning.startswith("warning: GRAFTWORK_WORKR")
    assert "GRAFTWORK_WORKER?" in warning
    assert_one_clear_line(error, port, "GRAFTWORK_PORT=")


def test_serve_names_a_database_that_it_cannot_reach_without_its_password(tmp_path: Path):
    database = f"postgresql://graftwork:secret@127.0.0.1:{free_port()}/graftwork"
    refused = graftwork("serve", GRAFTWORK_HOME=str(tmp_path), GRAFTWORK_DATABASE_URL=database)
    assert refused.returncode == 1
    assert "GRAFTWORK_DATABASE_URL" in refused.stderr.splitlines()[-1]
    assert "secret" not in refused.stderr


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_worker_is_restarted_when_it_dies_and_ends_with_the_server(tmp_path: Path, how: int):
    port, home = free_port(), tmp_path / "home"
    environment = {"GRAFTWORK_HOME": str(home), "GRAFTWORK_PORT": str(port)}
    environment |= {"GRAFTWORK_API_KEY": "gw-0123456789ab-secret"}
    server = subprocess.Popen(
        [sys.executable, "-P", "-m", "service.cli", "serve"],
        env={**os.environ, **environment},
        stderr=subprocess.DEVNULL,
    )
    try:
        first = wait_for(lambda: worker_of(server.pid))
        assert b"GRAFTWORK_API_KEY" not in Path(f"/proc/{first}/environ").read_bytes()
        os.kill(first, signal.SIGKILL)
        second = wait_for(lambda: (pid := worker_of(server.pid)) != first and pid)
        wait_for(lambda: httpx.get(f"http://127.0.0.1:{port}/health").is_success)
    finally:
        server.send_signal(how)
        server.wait(120)
    wait_for(lambda: not is_running(second))


def worker_of(server: int) -> int | None:
    """The process id of the server's only child that runs a worker."""
    for children in Path(f"/proc/{server}/task").glob("*/children"):
        for pid in children.read_text().split():
            if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
    return None


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def wait_for(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if result := condition():
                return result
        except (OSError, httpx.TransportError):
            pass
        time.sleep(0.05)
    raise AssertionError("not in time")


def test_help_is_fast_because_commands_import_lazily():
    script = "import service.cli, sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in run.stdout.split()}
    assert not loaded & {"torch", "transformers", "vllm", "fastapi", "sqlalchemy", "httpx", "dbos"}


def test_doctor_reports_every_finding_and_its_remedy(run: Run, url: str):
    result = run("doctor", "--json")
    findings = {finding["what"]: finding for finding in json.loads(result.stdout)}
    assert findings["gateway"]["state"] == "good"
    assert url in findings["gateway"]["detail"]
    for finding in findings.values():
        assert finding["state"] != "bad" or finding["remedy"]
    assert result.exit_code == any(finding["state"] == "bad" for finding in findings.values())


def test_demo_says_where_its_files_should_be(tmp_path: Path):
    result = CliRunner().invoke(app, ["demo", "--source", str(tmp_path)])
    assert_one_clear_line(result.stderr, str(tmp_path), "base/config.json", "--source")
