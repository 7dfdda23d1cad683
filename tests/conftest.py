"""Checkpoints too small to be of use, and adapters for them: written in a blink, without torch."""

import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import settings
from safetensors.numpy import save_file

from pruning.architectures.llama import LINEARS
from pruning.geometry import Geometry

# models this small are many times slower on threads that wait for each other than on one
os.environ.setdefault("OMP_NUM_THREADS", "1")

# a busy machine is slow, not wrong
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# a shell's background job ignores Ctrl-C, and so would every process that a test starts
signal.signal(signal.SIGINT, signal.default_int_handler)

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 16,
    "head_dim": 4,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "tie_word_embeddings": True,
}
NO_POSTGRES = "PostgreSQL is not installed (Debian: apt-get install postgresql)"
ADAPTER_CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": list(LINEARS),
    "bias": "none",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    kinds = ("sqlite", "postgresql")
    parser.addoption("--database", choices=kinds, default="sqlite", help="for catalog and jobs")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("database") == "postgresql" and _postgres_programs() is None:
        raise pytest.UsageError(f"--database postgresql: {NO_POSTGRES}")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where processes share the tests, those of a file or of an engine stay together."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            folder = file.rpartition("/")[0]
            return folder if folder in ("tests/e2e", "tests/engine") else file

    return Together(config, log)


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def _block(linear: str) -> str:
    return "self_attn" if linear in LINEARS[:4] else "mlp"


@pytest.fixture
def write_base() -> Callable[..., Path]:
    """Write the files of a base, with changes to its config, into a new directory."""

    def write(directory: Path, **changes: Any) -> Path:
        config = CONFIG | changes
        geometry = Geometry.from_config(config)
        hidden, vocab = geometry.hidden_size, geometry.vocab_size
        tensors = {
            "model.embed_tokens.weight": _random(vocab, hidden),
            "model.norm.weight": _random(hidden),
        }
        if not geometry.tied:
            tensors["lm_head.weight"] = _random(vocab, hidden)
        for layer in range(len(geometry.layers)):
            prefix = f"model.layers.{layer}"
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{prefix}.{norm}.weight"] = _random(hidden)
            for linear in LINEARS:
                shape = geometry.linear_shape(layer, linear)
                assert shape is not None
                tensors[f"{prefix}.{_block(linear)}.{linear}.weight"] = _random(*shape)
        directory.mkdir(parents=True)
        save_file(tensors, directory / "model.safetensors")
        (directory / "config.json").write_text(json.dumps(config))
        (directory / "tokenizer.json").write_text("{}")
        return directory

    return write


@pytest.fixture
def write_adapter() -> Callable[..., Path]:
    """Write the files of an adapter that fits such a base, with changes to its config."""

    def write(directory: Path, seed: int = 0, **changes: Any) -> Path:
        config = ADAPTER_CONFIG | changes
        geometry = Geometry.from_config(CONFIG)
        rank, tensors = config["r"], {}
        for layer in range(len(geometry.layers)):
            for linear in LINEARS:
                shape = geometry.linear_shape(layer, linear)
                assert shape is not None
                name = f"base_model.model.model.layers.{layer}.{_block(linear)}.{linear}"
                tensors[f"{name}.lora_A.weight"] = _random(rank, shape[1]) + seed
                tensors[f"{name}.lora_B.weight"] = _random(shape[0], rank)
        directory.mkdir(parents=True)
        save_file(tensors, directory / "adapter_model.safetensors")
        (directory / "adapter_config.json").write_text(json.dumps(config))
        return directory

    return write


@pytest.fixture
def repeated() -> Callable[[Path], list[int]]:
    """How many layers each life worked on that an earlier one had begun, from what a job said.

    A life opens with the line "a life begins"; a line that names a layer is the start of its work.
    """

    def count(said: Path) -> list[int]:
        earlier: set[str] = set()
        found = []
        for life in said.read_text().split("a life begins\n"):
            layers = {line for line in life.splitlines() if "layer" in line}
            found.append(len(layers & earlier))
            earlier |= layers
        return found

    return count


@pytest.fixture
def base_directory(tmp_path: Path, write_base: Callable[..., Path]) -> Path:
    return write_base(tmp_path / "base")


@pytest.fixture
def adapter_directory(tmp_path: Path, write_adapter: Callable[..., Path]) -> Path:
    return write_adapter(tmp_path / "adapter")


def _postgres_programs() -> Path | None:
    """The folder of the newest PostgreSQL server that is installed."""
    initdb = shutil.which("initdb")
    installed = [Path(initdb).resolve().parent] if initdb else []
    installed += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((path for path in installed if (path / "postgres").exists()), None)


class Postgres:
    """A PostgreSQL server of the tests' own, which can be stopped."""

    def __init__(self) -> None:
        programs = _postgres_programs()
        if programs is None:
            pytest.skip(NO_POSTGRES)
        user = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        self._folder = folder = Path(tempfile.mkdtemp(prefix="graftwork-postgres-"))
        os.chown(folder, user.pw_uid, user.pw_gid)  # it refuses to run as root
        self._options: dict[str, Any] = {"user": user.pw_uid, "group": user.pw_gid, "cwd": folder}
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        make = [programs / "initdb", "-D", folder / "data", "-U", "graftwork", "--auth=trust"]
        subprocess.run([*make, "--no-sync"], check=True, capture_output=True, **self._options)
        values = {"listen_addresses": "127.0.0.1", "unix_socket_directories": folder}
        values |= {"max_connections": 400, "fsync": "off", "synchronous_commit": "off"}
        settings = [word for name, value in values.items() for word in ("-c", f"{name}={value}")]
        self._command = [programs / "postgres", "-D", folder / "data", "-p", str(port), *settings]
        self._process: subprocess.Popen[bytes] | None = None
        self.address = f"postgresql://graftwork@127.0.0.1:{port}"  # without a database's name
        self.url = f"{self.address}/postgres"

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stderr=log, **self._options)
        for _ in range(600):
            with suppress(psycopg.OperationalError):
                psycopg.connect(self.url).close()
                return
            time.sleep(0.1)
        raise AssertionError((self._folder / "log").read_text())

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Break all connections and end; SIGQUIT takes no time to write what it holds."""
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait()

    def remove(self) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self._folder)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The address of a PostgreSQL server that lives as long as the tests."""
    server = Postgres()
    server.start()
    yield server.address
    server.remove()


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A server for one test, to be stopped and started."""
    server = Postgres()
    server.start()
    yield server
    server.remove()


@contextmanager
def _postgres_database(server: str, template: str = "template1") -> Iterator[str]:
    name = f"test_{secrets.token_hex(8)}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        yield f"{server}/{name}"
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def postgres(postgres_server: str) -> Iterator[str]:
    """The URL of a new PostgreSQL database."""
    with _postgres_database(postgres_server) as url:
        yield url


@pytest.fixture(scope="session")
def fresh_database(
    request: pytest.FixtureRequest,
) -> Callable[[], AbstractContextManager[str | None]]:
    """A new database as --database has it: its URL, or None for SQLite below home."""
    if request.config.getoption("database") == "sqlite":
        return nullcontext
    from dbos import DBOS

    from service.catalog import Catalog

    server: str = request.getfixturevalue("postgres_server")
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute("CREATE DATABASE prepared")
    url = f"{server}/prepared".replace("postgresql:", "postgresql+psycopg:")
    DBOS.migrate(url)  # once: it takes a second
    Catalog(url).close()
    return partial(_postgres_database, server, "prepared")


@pytest.fixture(scope="module")  # its event loop would stand in the way of other modules' own
def browser() -> Iterator[Any]:
    """Chromium, without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs a browser (Debian's package chromium)")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def serious() -> Callable[[Any], list[str]]:
    """What axe finds serious or worse about the accessibility of the page in a tab."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe").Axe()

    def findings(tab: Any) -> list[str]:
        return [
            f"{one['id']}: {[node['html'] for node in one['nodes']]}"
            for one in axe.run(tab).response["violations"]
            if one["impact"] in ("serious", "critical")
        ]

    return findings


@pytest.fixture(scope="session")
def kernels() -> None:
    """The compiled kernels of this tree; without a compiler the test is skipped."""
    from multilora import build, native

    sources = max(path.stat().st_mtime for path in build.SOURCES[0].iterdir())
    if not native.LIBRARY.exists() or native.LIBRARY.stat().st_mtime < sources:
        try:
            build.build(build.SOURCES[0])
        except build.CannotBuild as problem:
            pytest.skip(str(problem).partition("\n")[0])
    assert native.available()
