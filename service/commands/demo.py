"""`graftwork demo`: the bundled model, pruned and served with its adapters, in one command."""

import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from pruning.digest import tree_digest
from service.client import Client, Json
from service.commands import configuration, lifeline
from service.commands.failure import CommandFailed
from service.commands.follow import conclude, follow
from service.commands.prune import read_recipe, submit
from service.settings import Settings

_PARTS = ("base/config.json", "adapters", "text", "recipe.yaml")
_HEALTH_SECONDS = 60.0
_STOP_SECONDS = 40.0
_TOKENS = 32
_out = Console(highlight=False, soft_wrap=True)


def run(once: bool, source: Path | None) -> None:
    """Start a server, make the demo if its home lacks it, show that it answers, serve on."""
    folder = locate(source)
    settings = _settings()
    _out.print(f"Starting a server; its home is {settings.home}, its log {_log(settings)}")
    with _server(settings) as server, Client(f"http://127.0.0.1:{settings.port}") as client:
        _wait(server, settings, "the gateway", _HEALTH_SECONDS, client.is_healthy)
        slim = _prune(client, settings, folder)
        with _out.status("starting the engines"):
            limit = settings.engine_start_timeout
            _wait(server, settings, "the engines", limit, lambda: _all_ready(client))
        _show_answer(client, request(slim, folder))
        if not once:
            _serve_on(server, settings)


def locate(source: Path | None) -> Path:
    """The folder with the bundled model: the one named, below here, or beside the sources."""
    if source is None:
        beside = Path(__file__).parents[2] / "deploy" / "demo"
        source = Path(os.environ.get("GRAFTWORK_DEMO", beside))
    if missing := [part for part in _PARTS if not (source / part).exists()]:
        raise CommandFailed(
            f"{source} lacks {', '.join(missing)}; run this in a checkout of the repository, "
            "or name its folder deploy/demo with --source"
        )
    return source.absolute()


def _settings() -> Settings:
    """The settings, with a home of the demo's own unless GRAFTWORK_HOME names one."""
    settings = configuration.load()
    if "GRAFTWORK_HOME" not in os.environ:
        settings = settings.model_copy(update={"home": settings.home / "demo"})
    settings.home.mkdir(parents=True, exist_ok=True)
    return settings


def _log(settings: Settings) -> Path:
    return settings.home / "serve.log"


@contextmanager
def _server(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    environment = {"GRAFTWORK_HOME": str(settings.home.absolute()), "GRAFTWORK_WORKER": "true"}
    with _log(settings).open("wb") as log:
        child = lifeline.spawn(["serve"], environment, log)
        try:
            yield child
        except KeyboardInterrupt:
            _out.print("stopping")
        finally:
            lifeline.stop(child, _STOP_SECONDS)


def _prune(client: Client, settings: Settings, folder: Path) -> str:
    """Register what the demo consists of and run its recipe; the name of the slim base."""
    recipe = read_recipe(folder / "recipe.yaml")
    bases = {base["id"]: base for base in client.bases()}
    if recipe.base not in bases:
        client.add_base(recipe.base, folder / "base")
    elif bases[recipe.base]["digest"] != tree_digest(folder / "base"):
        raise CommandFailed(
            f"{settings.home} holds a demo of another version; start afresh: rm -r {settings.home}"
        )
    known = {adapter["name"] for adapter in client.adapters(recipe.base)}
    for directory in sorted((folder / "adapters").iterdir()):
        if directory.name not in known:
            client.upload_adapter(directory.name, recipe.base, directory)
    if recipe.name not in bases:
        _out.print(f"Pruning {recipe.base} ({recipe.aim}), carrying its adapters")
        unfinished = [
            job
            for job in client.jobs(100)
            if job["status"] in ("queued", "running") and job["recipe"]["name"] == recipe.name
        ]
        job = unfinished[0] if unfinished else submit(client, recipe, folder)
        conclude(client, follow(client, job["id"]))
    return recipe.name


def _wait(
    server: subprocess.Popen[bytes],
    settings: Settings,
    what: str,
    seconds: float,
    done: Callable[[], bool],
) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        if server.poll() is not None:
            raise CommandFailed(_last_words(settings))
        if time.monotonic() > deadline:
            raise CommandFailed(
                f"{what} did not get ready within {seconds:.0f} s; see {_log(settings)} "
                f"and {settings.run}"
            )
        time.sleep(0.2)


def _last_words(settings: Settings) -> str:
    lines = _log(settings).read_text(errors="replace").strip().splitlines()
    reason = lines[-1].removeprefix("error: ") if lines else "it said nothing"
    return f"the server stopped: {reason}"


def _all_ready(client: Client) -> bool:
    return all(model["ready"] for model in client.models())


def request(slim: str, folder: Path) -> Json:
    """A request for the slim base with its first adapter: the body of /v1/completions."""
    for examples in sorted((folder / "adapters").glob("*/eval.jsonl")):
        with examples.open(encoding="utf-8") as lines:
            prompt = json.loads(next(lines))["prompt"]
        if prompt:  # an adapter may be one that writes from nothing
            model = f"{slim}+{examples.parent.name}"
            return {"model": model, "prompt": prompt, "max_tokens": _TOKENS, "temperature": 0}
    raise CommandFailed(f"no adapter in {folder / 'adapters'} has an eval.jsonl with prompts")


def _show_answer(client: Client, body: Json) -> None:
    answer = client.complete(body)["choices"][0]["text"]
    if not answer.strip():
        raise CommandFailed(f"{body['model']} answered with nothing to {body['prompt']!r}")
    _out.print(f"\n{body['model']} continues", style="bold")
    _out.print(f"  {body['prompt']!r}\n  {answer!r}", markup=False)
    _out.print("\nThe same with curl:", style="bold")
    _out.print(
        f"curl {client.url}/v1/completions -H 'Content-Type: application/json' "
        f"-d {shlex.quote(json.dumps(body))}",
        markup=False,
    )


def _serve_on(server: subprocess.Popen[bytes], settings: Settings) -> None:
    _out.print("\nServing until Ctrl-C.")
    if server.wait():
        raise CommandFailed(_last_words(settings))
