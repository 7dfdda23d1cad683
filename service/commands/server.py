"""`graftwork serve` and `graftwork worker`: the long-running processes."""

import gc
import importlib.metadata
import importlib.util
import logging
import math
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import structlog
import typer
import uvicorn
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from service import logs
from service.app import create_app
from service.authentication import is_loopback
from service.catalog import Catalog
from service.commands import configuration, lifeline
from service.commands.failure import CommandFailed
from service.connections import Connection, Server
from service.settings import Settings

if TYPE_CHECKING:
    from service.tracing import Tracing

_PLUGIN_GROUPS = ("vllm.general_plugins", "vllm.endpoint_plugins")
_COLLECTOR = "OTEL_EXPORTER_OTLP_ENDPOINT"
_WORKER_STOP = 10.0
_STABLE = 60.0  # a worker that lived this long starts again without delay
_MAX_DELAY = 30.0
_log = structlog.get_logger("serve")


def serve(on_lifeline: bool) -> None:
    """Run the gateway and, unless the settings say otherwise, a worker, until SIGTERM or Ctrl-C."""
    settings = _prepare()
    if not settings.engine_command:
        _require_engine()
    listener = _listen(settings)
    _allow_many_connections()
    with _database_errors(settings):
        app = create_app(settings, tracing=_tracing("gateway"))
        _require_key(settings, app.state.catalog)
    config = uvicorn.Config(
        app,
        http=partial(Connection, settings.stall_timeout),  # type: ignore[arg-type]
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout),
    )
    gc.collect()
    gc.freeze()  # what is there now stays: collections need not walk it, and take less time
    # uvicorn raises its signal again when it has shut down; this leaves by the `finally`s.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if on_lifeline:
        lifeline.hold_on()
    with listener, _worker_beside(settings):
        _log.info("listening", url=f"http://{settings.host}:{settings.port}")
        try:
            Server(config, app.state.drain, settings.drain_delay).run(sockets=[listener])
        except KeyboardInterrupt:
            _log.info("stopped")


def worker(on_lifeline: bool) -> None:
    """Run pruning jobs until SIGTERM or Ctrl-C."""
    from pruning.jobs.runner import Runner
    from pruning.worker import Workplace, run

    settings = _prepare()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    place = Workplace(settings.database, settings.artifacts.absolute(), settings.jobs.absolute())
    if on_lifeline:
        lifeline.hold_on()
    with _database_errors(settings):
        catalog = Catalog(settings.database)
    tracing = _tracing("worker")
    make = tracing.runner if tracing else Runner
    run(place, catalog.publish, make(threads=settings.stage_threads))


def _prepare() -> Settings:
    settings = configuration.load()
    os.environ.pop("GRAFTWORK_API_KEY", None)  # an operator's, and no business of any child
    for warning in configuration.strangers():
        typer.echo(f"warning: {warning}", err=True)
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandFailed(f"GRAFTWORK_HOME={settings.home} cannot be used: {error}") from error
    logs.configure()
    return settings


def _tracing(process: str) -> "Tracing | None":
    """What OpenTelemetry's own settings ask for; what it takes is loaded only then."""
    if _COLLECTOR not in os.environ:
        return None
    try:
        from service.tracing import Tracing
    except ImportError as error:
        raise CommandFailed(
            f"{_COLLECTOR} is set, and OpenTelemetry is not installed; "
            "install it with: pip install 'graftwork[tracing]'"
        ) from error
    return Tracing(process)


def _require_engine() -> None:
    if importlib.util.find_spec("vllm") is None:
        raise CommandFailed("vLLM is not installed; install it with: scripts/install.sh")
    for group in _PLUGIN_GROUPS:
        if not any(
            entry.value.startswith("service.engine.")
            for entry in importlib.metadata.entry_points(group=group)
        ):
            raise CommandFailed(
                f"the installation does not register our {group}; repair it with: pip install -e ."
            )


def _require_key(settings: Settings, catalog: Catalog) -> None:
    if not (is_loopback(settings.host) or any(key.valid for key in catalog.keys())):
        raise CommandFailed(
            f"GRAFTWORK_HOST={settings.host} is open to others, and there is no API key; "
            "create one with: graftwork keys create TENANT --scope admin"
        )


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise CommandFailed(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; "
            f"choose another port: GRAFTWORK_PORT={settings.port + 1} graftwork serve"
        ) from error


def _allow_many_connections() -> None:
    """Every request that is open takes two files: towards its client, and towards its engine."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextmanager
def _database_errors(settings: Settings) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        url = make_url(settings.database).render_as_string(hide_password=True)
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise CommandFailed(
            f"the database {url} cannot be used: {reason}; check GRAFTWORK_DATABASE_URL"
        ) from error


@contextmanager
def _worker_beside(settings: Settings) -> Iterator[None]:
    """A worker that is started again whenever it dies, and ends with this block."""
    if not settings.worker:
        yield
        return
    over = threading.Event()
    keeper = threading.Thread(target=_keep_worker, args=(over,))
    keeper.start()
    try:
        yield
    finally:
        over.set()
        keeper.join()


def _keep_worker(over: threading.Event) -> None:
    delay = 0.0
    while not over.wait(delay):
        child, started = lifeline.spawn(["worker"]), time.monotonic()
        while child.poll() is None and not over.wait(0.2):
            pass
        if over.is_set():
            lifeline.stop(child, _WORKER_STOP)
            return
        delay = 0.0 if time.monotonic() - started > _STABLE else min(2 * delay + 1, _MAX_DELAY)
        _log.warning("the worker died", returncode=child.returncode, restart_in_seconds=delay)
