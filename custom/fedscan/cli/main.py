"""`fedscan`: the commands, in the order in which a consortium uses them."""

from __future__ import annotations

from typing import Annotated

import typer

from fedscan.cli import audit, federation, job, policy, server, site, site_backup, site_commands, store
from fedscan.cli.budget import budget
from fedscan.cli.deal import deal
from fedscan.cli.demo import demo
from fedscan.cli.generate import generate
from fedscan.cli.inspect import inspect
from fedscan.cli.prepare import prepare
from fedscan.cli.warm_start import warm_start

app = typer.Typer(
    name="fedscan",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    help="""Hospitals train one diffusion model of chest CT together, and every scan stays at home.

**At a hospital:** `prepare` turns an export of CT scans into a slice store, `inspect` shows what is in it, `site init`
makes the site's key, ledger and policy, `policy check` asks what the site would say to a job, `site approve` approves
one, `budget` shows what was spent and what is left, `audit privacy` attacks a plan's privacy, `store forget` takes
patients out.

**As a researcher:** `job new` makes a job from a template in jobs/, `job check` says what is wrong with it, `job run`
trains it over the sites, on this machine or (`--kit`) in a provisioned federation, `job watch` shows its rounds, `job
resume` goes on after a stop, `job download` fetches what a job came to, `generate` draws synthetic slices of it,
`warm-start` makes a public start for private training, `deal` splits one store over several sites for a study.

**As the server's operator:** `server places` says where runs and models lie, `server add-model` lays a model there.

**To see it all at once:** `demo`, and `federation demo` for provisioned sites.""",
)


def _version(wanted: bool) -> None:
    if wanted:
        from fedscan import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


app.command("prepare")(prepare)
app.command("inspect")(inspect)
site_commands.register(site.app)
site_backup.register(site.app)
app.add_typer(site.app, name="site")
app.add_typer(policy.app, name="policy")
app.add_typer(store.app, name="store")
app.add_typer(job.app, name="job")
app.add_typer(server.app, name="server")
app.command("budget")(budget)
app.add_typer(audit.app, name="audit")
app.command("warm-start")(warm_start)
app.command("deal")(deal)
app.command("generate")(generate)
app.command("demo")(demo)
app.add_typer(federation.app, name="federation")


def main() -> None:
    """Entry point of the `fedscan` script."""
    app()
