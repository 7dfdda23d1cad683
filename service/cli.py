"""`graftwork`: every command, each importing what it needs only when it runs."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class _Root(TyperGroup):
    """Prints an error that the user can mend as one line."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            from service.commands.failure import explain

            if (line := explain(error)) is None:
                raise
            typer.secho(f"error: {line}", fg="red", err=True)
            raise typer.Exit(1) from error


def _address() -> str:
    return f"http://127.0.0.1:{os.environ.get('GRAFTWORK_PORT', '8000')}"


Url = Annotated[
    str,
    typer.Option(
        envvar="GRAFTWORK_URL", default_factory=_address, help="address of the server to talk to"
    ),
]


def _known(what: str) -> Any:
    """Completes the names of what the server has."""

    def complete(incomplete: str) -> list[str]:
        from service.commands import complete

        return complete.names(what, incomplete)

    return complete


JobId = Annotated[str, typer.Argument(autocompletion=_known("jobs"))]
BaseName = Annotated[str, typer.Argument(autocompletion=_known("bases"))]
OfBase = Annotated[
    str | None, typer.Option(help="only of this base", autocompletion=_known("bases"))
]
Wait = Annotated[bool, typer.Option("--wait", "-w", help="show progress until the end")]
Limit = Annotated[int, typer.Option(min=1, max=100, help="how many, at most")]
Json = Annotated[bool, typer.Option("--json", help="print JSON, for programs")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="go on until the job has ended")]
Lifeline = Annotated[bool, typer.Option(hidden=True, help="end with standard input")]

app = typer.Typer(
    cls=_Root,
    help="Slim an LLM under its fleet of LoRA adapters, and serve the result through vLLM.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
jobs = typer.Typer(help="Jobs of whatever kind: list, show, follow, cancel.", no_args_is_help=True)
bases = typer.Typer(
    help="Bases: dense ones you register, slim ones jobs make.", no_args_is_help=True
)
sweep = typer.Typer(help="Many recipes in one job, and the best of them.", no_args_is_help=True)
aliases = typer.Typer(help="Names for bases: promoted, and rolled back.", no_args_is_help=True)
adapters = typer.Typer(help="LoRA adapters of the bases.", no_args_is_help=True)
tenants = typer.Typer(help="Tenants: what each may take.", no_args_is_help=True)
keys = typer.Typer(help="API keys of tenants, in the database.", no_args_is_help=True)
app.add_typer(jobs, name="jobs")
app.add_typer(sweep, name="sweep")
app.add_typer(bases, name="bases")
app.add_typer(aliases, name="aliases")
app.add_typer(adapters, name="adapters")
app.add_typer(keys, name="keys")
app.add_typer(tenants, name="tenants")


@app.command()
def serve(lifeline: Lifeline = False) -> None:
    """Serve every registered base, and run a worker beside it; configured by GRAFTWORK_* only."""
    from service.commands import server

    server.serve(lifeline)


@app.command()
def worker(lifeline: Lifeline = False) -> None:
    """Run pruning jobs; any number of workers share one PostgreSQL database."""
    from service.commands import server

    server.worker(lifeline)


@app.command()
def demo(
    once: Annotated[bool, typer.Option(help="stop after the first answer, for checks")] = False,
    source: Annotated[
        Path | None, typer.Option(envvar="GRAFTWORK_DEMO", help="the folder deploy/demo")
    ] = None,
) -> None:
    """Prune the bundled model, carry its adapters, serve both and ask for a completion."""
    from service.commands import demo

    demo.run(once, source)


@app.command()
def doctor(url: Url, as_json: Json = False) -> None:
    """Say what is missing or broken on this machine, and how to mend it."""
    from service.commands import doctor

    doctor.run(url, as_json)


@app.command()
def prune(  # noqa: PLR0913  each is an option
    url: Url,
    recipe: Annotated[
        Path | None, typer.Argument(help="a YAML file; see docs/recipes.md", show_default=False)
    ] = None,
    wait: Wait = False,
    from_sweep: Annotated[
        str | None, typer.Option(help="instead of a recipe: a sweep, whose best cell is made")
    ] = None,
    target_bytes: Annotated[int | None, typer.Option(help="the most that it may take")] = None,
    target_latency: Annotated[
        float | None, typer.Option(help="the most milliseconds of a decoding step")
    ] = None,
    max_loss: Annotated[
        float | None, typer.Option(help="the most nats per token over the dense base")
    ] = None,
    name: Annotated[str | None, typer.Option(help="of the slim base; SWEEP-CELL")] = None,
    as_json: Json = False,
) -> None:
    """Start the pruning job of a recipe, its texts uploaded first, or of the best cell of a sweep.

    With --from-sweep give one limit: within bytes or milliseconds the cell that loses least is
    made, within a loss the smallest.
    """
    from service.commands import prune

    limits = {
        "target_bytes": target_bytes,
        "target_latency_ms": target_latency,
        "max_loss": max_loss,
        "name": name,
    }
    prune.start(url, recipe, from_sweep, limits, wait, as_json)


@app.command()
def preview(
    recipe: Annotated[Path, typer.Argument(help="a YAML file; see docs/recipes.md")],
    url: Url,
    as_json: Json = False,
) -> None:
    """Say what a recipe would leave of its base, before anything runs."""
    from service.commands import planning

    planning.preview(url, recipe, as_json)


@app.command()
def methods(
    url: Url,
    kind: Annotated[
        str | None,
        typer.Argument(help="criterion, allocator, schedule, recovery, merge or compress"),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the methods that recipes can name, each with its paper."""
    from service.commands import planning

    planning.methods(url, kind, as_json)


@app.command()
def models(url: Url, as_json: Json = False) -> None:
    """List what the `model` field of a request can name."""
    from service.commands import resources

    resources.list_models(url, as_json)


@app.command()
def verify(
    repair: Annotated[bool, typer.Option("--repair", help="put damaged content aside")] = False,
    as_json: Json = False,
) -> None:
    """Read everything that is stored, and say where catalog and disk differ."""
    from service.commands import store

    store.verify(repair, as_json)


@app.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="remove nothing")] = False,
    hours: Annotated[float, typer.Option(min=0, help="that drafts are left alone")] = 24,
    as_json: Json = False,
) -> None:
    """Remove artifacts that nothing refers to, and what is left of ended jobs and uploads."""
    from service.commands import store

    store.gc(dry_run, hours, as_json)


@app.command()
def audit(
    tenant: Annotated[str | None, typer.Option(help="only what this tenant has")] = None,
    limit: Annotated[int, typer.Option(min=1, help="the newest so many")] = 100,
    as_json: Json = False,
) -> None:
    """List who changed what, and when."""
    from service.commands import audit

    audit.list_changes(tenant, limit, as_json)


@jobs.command("list")
def list_jobs(url: Url, limit: Limit = 20, as_json: Json = False) -> None:
    """List the newest jobs."""
    from service.commands import jobs

    jobs.list_jobs(url, limit, as_json)


@jobs.command("show")
def show_job(id: JobId, url: Url, as_json: Json = False) -> None:
    """Show how one job stands."""
    from service.commands import jobs

    jobs.show_job(url, id, as_json)


@jobs.command("events")
def job_events(id: JobId, url: Url, follow: Follow = False, as_json: Json = False) -> None:
    """Print what happened to a job."""
    from service.commands import jobs

    jobs.events(url, id, follow, as_json)


@jobs.command("checkpoints")
def job_checkpoints(id: JobId, url: Url, as_json: Json = False) -> None:
    """List where a training looked at its validation rows, newest first."""
    from service.commands import jobs

    jobs.checkpoints(url, id, as_json)


@jobs.command("cancel")
def cancel_job(id: JobId, url: Url, as_json: Json = False) -> None:
    """End a job that is queued or running."""
    from service.commands import jobs

    jobs.cancel(url, id, as_json)


@sweep.command("run")
def run_sweep(
    recipe: Annotated[Path, typer.Argument(help="a YAML file with a grid; see docs/sweeps.md")],
    url: Url,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Start the job that makes and measures every cell of a grid."""
    from service.commands import sweep

    sweep.run(url, recipe, wait, as_json)


@sweep.command("list")
def list_sweeps(url: Url, limit: Limit = 20, as_json: Json = False) -> None:
    """List the newest sweeps."""
    from service.commands import sweep

    sweep.list_sweeps(url, limit, as_json)


@sweep.command("show")
def show_sweep(
    id: str,
    url: Url,
    whole: Annotated[bool, typer.Option("--all", help="all cells, not the front alone")] = False,
    as_json: Json = False,
) -> None:
    """Print the cells of a sweep that nothing beats in both size and loss, smallest first."""
    from service.commands import sweep

    sweep.show_sweep(url, id, whole, as_json)


@bases.command("list")
def list_bases(url: Url, as_json: Json = False) -> None:
    """List the bases, served or not."""
    from service.commands import resources

    resources.list_bases(url, as_json)


@bases.command("add")
def add_base(
    name: str,
    directory: Annotated[Path, typer.Argument(help="a checkpoint on the server's disk")],
    url: Url,
    serve: Annotated[bool, typer.Option(help="start an engine for it")] = True,
    as_json: Json = False,
) -> None:
    """Register a checkpoint: config.json, safetensors and a tokenizer in one directory."""
    from service.commands import resources

    resources.add_base(url, name, directory, serve, as_json)


@bases.command("remove")
def remove_base(name: BaseName, url: Url, as_json: Json = False) -> None:
    """Forget a base that nothing depends on."""
    from service.commands import resources

    resources.remove_base(url, name, as_json)


@bases.command("report")
def base_report(name: BaseName, url: Url, as_json: Json = False) -> None:
    """Show what the job that made a slim base measured."""
    from service.commands import resources

    resources.report(url, name, as_json)


@aliases.command("list")
def list_aliases(url: Url, as_json: Json = False) -> None:
    """List the aliases, and what they stood for before."""
    from service.commands import aliases

    aliases.list_aliases(url, as_json)


AliasName = Annotated[str, typer.Argument(autocompletion=_known("aliases"))]


@aliases.command("promote")
def promote_alias(alias: AliasName, base: BaseName, url: Url, as_json: Json = False) -> None:
    """Let an alias, new or not, stand for a base."""
    from service.commands import aliases

    aliases.promote(url, alias, base, as_json)


@aliases.command("rollback")
def roll_back_alias(alias: AliasName, url: Url, as_json: Json = False) -> None:
    """Let an alias stand for what it stood for before."""
    from service.commands import aliases

    aliases.roll_back(url, alias, as_json)


@aliases.command("remove")
def remove_alias(alias: AliasName, url: Url, as_json: Json = False) -> None:
    """Forget an alias; the base stays."""
    from service.commands import aliases

    aliases.remove(url, alias, as_json)


@adapters.command("list")
def list_adapters(
    url: Url,
    base: OfBase = None,
    as_json: Json = False,
) -> None:
    """List the adapters, of one base or of all."""
    from service.commands import resources

    resources.list_adapters(url, base, as_json)


@adapters.command("add")
def add_adapter(
    name: str,
    directory: Annotated[Path, typer.Argument(help="a LoRA as PEFT saves it; it is uploaded")],
    url: Url,
    base: Annotated[
        str,
        typer.Option(help="the base that it was trained on", autocompletion=_known("bases")),
    ],
    as_json: Json = False,
) -> None:
    """Upload an adapter; requests then ask for the model BASE+NAME."""
    from service.commands import resources

    resources.add_adapter(url, name, directory, base, as_json)


AdapterRecipe = Annotated[Path, typer.Argument(help="a YAML file; see docs/adapters.md")]


@adapters.command("merge")
def merge_adapters(
    recipe: AdapterRecipe, url: Url, wait: Wait = False, as_json: Json = False
) -> None:
    """Start the job that merges the adapters of a recipe into one."""
    from service.commands import combine

    combine.combine(url, recipe, "merge", wait, as_json)


@adapters.command("compress")
def compress_adapter(
    recipe: AdapterRecipe, url: Url, wait: Wait = False, as_json: Json = False
) -> None:
    """Start the job that makes the adapter of a recipe smaller."""
    from service.commands import combine

    combine.combine(url, recipe, "compress", wait, as_json)


@adapters.command("lift")
def lift_adapter(
    model: Annotated[
        str,
        typer.Argument(
            help="SLIM+NAME, an adapter of a slim base", autocompletion=_known("adapters")
        ),
    ],
    url: Url,
    name: Annotated[str | None, typer.Option(help="of the lifted adapter; NAME")] = None,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Start the job that brings an adapter of a slim base to the dense one it was cut from."""
    from service.commands import combine

    combine.lift(url, model, name, wait, as_json)


@adapters.command("compare")
def compare_adapters(
    base: BaseName,
    url: Url,
    names: Annotated[
        list[str] | None, typer.Argument(help="of its adapters; all if none is given")
    ] = None,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Start the job that measures how alike adapters are."""
    from service.commands import combine

    combine.compare(url, base, names or [], wait, as_json)


@adapters.command("train")
def train_adapter(
    recipe: AdapterRecipe, url: Url, wait: Wait = False, as_json: Json = False
) -> None:
    """Start the job that trains the adapter of a recipe on rows."""
    from service.commands import combine

    combine.combine(url, recipe, "train", wait, as_json)


@adapters.command("train-generator")
def train_generator(
    recipe: AdapterRecipe, url: Url, wait: Wait = False, as_json: Json = False
) -> None:
    """Start the job that trains a generator on the tasks of a recipe."""
    from service.commands import combine

    combine.combine(url, recipe, "train_generator", wait, as_json)


@adapters.command("generate")
def generate_adapter(
    recipe: AdapterRecipe, url: Url, wait: Wait = False, as_json: Json = False
) -> None:
    """Start the job that makes an adapter from examples or a description, without training."""
    from service.commands import combine

    combine.combine(url, recipe, "generate", wait, as_json)


@adapters.command("generators")
def list_generators(
    url: Url,
    base: OfBase = None,
    as_json: Json = False,
) -> None:
    """List the generators, of one base or of all."""
    from service.commands import resources

    resources.list_generators(url, base, as_json)


@adapters.command("remove")
def remove_adapter(
    model: Annotated[str, typer.Argument(help="BASE+NAME", autocompletion=_known("adapters"))],
    url: Url,
    as_json: Json = False,
) -> None:
    """Unload an adapter and forget it."""
    from service.commands import resources

    resources.remove_adapter(url, model, as_json)


@keys.command("create")
def create_key(
    tenant: str,
    scope: Annotated[
        list[str] | None,
        typer.Option(help="infer, adapters, jobs or admin; again for more; the first three"),
    ] = None,
    name: Annotated[str, typer.Option(help="for people")] = "",
    days: Annotated[float | None, typer.Option(help="until it expires; never if absent")] = None,
    as_json: Json = False,
) -> None:
    """Create a key for a tenant and print it, this once."""
    from service.commands import keys
    from service.tenants import SCOPES

    keys.create(tenant, name, scope or list(SCOPES[:3]), days, as_json)


@keys.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option(help="only of this tenant")] = None,
    as_json: Json = False,
) -> None:
    """List the keys, by how they begin."""
    from service.commands import keys

    keys.list_keys(tenant, as_json)


@keys.command("rotate")
def rotate_key(
    id: str,
    grace: Annotated[int, typer.Option(min=0, help="seconds that the old one stays valid")] = 0,
    as_json: Json = False,
) -> None:
    """Replace a key by one with the same rights, and print it."""
    from service.commands import keys

    keys.rotate(id, grace, as_json)


@keys.command("revoke")
def revoke_key(id: str, as_json: Json = False) -> None:
    """End a key."""
    from service.commands import keys

    keys.revoke(id, as_json)


@tenants.command("list")
def list_tenants(as_json: Json = False) -> None:
    """List the tenants: what each may take, and the bytes it stores."""
    from service.commands import tenants

    tenants.list_tenants(as_json)


@tenants.command("quota")
def tenant_quota(
    tenant: str,
    changes: Annotated[
        list[str] | None, typer.Argument(help="NAME=NUMBER, NAME=none or NAME=default")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a tenant may take, after these changes, if any."""
    from service.commands import tenants

    tenants.quota(tenant, changes or [], as_json)


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
