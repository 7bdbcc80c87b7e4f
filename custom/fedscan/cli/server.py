"""`fedscan server ...`: for the operator of a federation's server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedscan.cli import revoke
from fedscan.cli.output import fail, print_json

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="At the coordinator: where the server keeps runs and models and for how long, which models plans may start "
    "from, and who is revoked.",
)

ServerKit = Annotated[
    Path, typer.Option("--kit", metavar="SERVER_KIT", help="The server's kit: the folder with startup/ and local/.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


app.command("revoke")(revoke.at_server)


@app.command("add-model")
def add_model(
    model: Annotated[Path, typer.Argument(metavar="FILE", help="A model.safetensors that fedscan wrote.")],
    kit: ServerKit,
    as_json: AsJson = False,
) -> None:
    """Lay a model on the server's shelf, so that plans may start from it (`job new --init FILE` names it by SHA-256).

    Models that come with fedscan need not be laid there. The server need not be stopped.

    Example: `fedscan server add-model start.safetensors --kit prod_00/server.example.org`
    """
    from fedscan.federation import server_shelf

    try:
        done = server_shelf.add_model(kit, model)
    except server_shelf.ShelfError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename or model}: {error.strerror}")
    if as_json:
        print_json({"sha256": done.sha256, "path": str(done.path), "new": done.new})
    else:
        typer.echo(f"{done.sha256}: {'on the shelf now' if done.new else 'was on the shelf already'}")


@app.command("clean")
def clean(
    kit: ServerKit,
    runs_days: Annotated[
        float | None, typer.Option("--runs-days", min=0.0, help="Keep runs for so many days; else server.json's.")
    ] = None,
    jobs_days: Annotated[
        float | None,
        typer.Option("--jobs-days", min=0.0, help="Keep NVFlare's copies of jobs so long; else server.json's."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, remove nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what old runs and jobs left, as `retention` in KIT/local/server.json says. Nothing that is at work.

    Of a run its verdict and the sites' ledger heads stay. Says what is kept, and why. The server need not be stopped;
    site_configs/systemd has a timer.

    Example: `fedscan server clean --kit prod_00/server.example.org --dry-run`
    """
    from fedscan.cli.site_doctor import tell_cleaned
    from fedscan.federation import server_clean, server_shelf

    try:
        days = server_clean.with_days(server_shelf.places_of(kit).retention, runs_days, jobs_days)
        cleaned = server_clean.clean(kit, days, dry_run=dry_run)
    except server_shelf.ShelfError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.strerror} ({error.filename}): the same command goes on")
    tell_cleaned(cleaned, dry_run, as_json)


@app.command("places")
def places(
    kit: ServerKit,
    folder: Annotated[
        Path | None, typer.Option("--folder", metavar="FOLDER", help="Keep runs and models here from the next job on.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show where the server keeps runs and models, or name another folder for them.

    Runs that lie elsewhere stay there, and `job resume` does not find them: move them along (FOLDER/runs/RUN_ID).

    Example: `fedscan server places --kit prod_00/server.example.org --folder /srv/fedscan`
    """
    from fedscan.federation import server_shelf

    try:
        now = server_shelf.places_of(kit) if folder is None else server_shelf.set_places(kit, folder)
    except server_shelf.ShelfError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
    if as_json:
        print_json(now.model_dump(mode="json"))
    else:
        typer.echo(f"runs:   {now.run_folder}\nmodels: {now.shelf}")
