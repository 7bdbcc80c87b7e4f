"""`fedscan warm-start`: a public model of phantoms for a plan's network, to start private training from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fedscan.cli.output import fail


def warm_start(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="A job, or a template of jobs/: its network is trained.")],
    out: Annotated[Path, typer.Option("--out", metavar="MODEL", help="The model file to write; it must not exist.")],
    look: Annotated[
        Literal["hu", "pictures"],
        typer.Option(help="What the stores hold: HU, or pictures of the lung window cropped to the chest."),
    ] = "hu",
    steps: Annotated[int, typer.Option(min=50, help="Gradient steps, in fifties.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes on one CPU.")] = 0,
) -> None:
    """Train a start for private training on phantoms: no scan and no patient goes into it.

    Minutes of one core; stopped, the same command goes on. Use the file with `fedscan job new ... --init MODEL`.
    The template jobs/ct_fedavg_dp names a start that comes with fedscan: you need this for other networks, windows or
    pictures.

    Example: `fedscan warm-start jobs/ct_fedavg_dp --out start.safetensors --look pictures`
    """
    import shutil

    from fedscan.federation import job_folder
    from fedscan.federation.findings import JobError
    from fedscan.training import public_start

    if out.exists():
        fail(f"{out} exists already: choose another file, nothing was overwritten")
    try:
        plan = job_folder.plan_of_network(job)
    except JobError as error:
        fail("; ".join(f"{f.where}: {f.text}" for f in error.findings))
    wanted = public_start.plan_of_start(plan, steps, seed)
    work = out.with_name(f".{out.name}.{wanted.digest[:12]}-{look}.partial")
    try:
        sha256 = public_start.make(
            plan, out, work, look=look, steps=steps, seed=seed, say=lambda text: typer.echo(text, err=True)
        )
    except KeyboardInterrupt:
        fail("stopped by you: the same command goes on")
    except OSError as error:
        fail(f"{error.filename or out}: {error.strerror}: mend that, the same command goes on")
    shutil.rmtree(work, ignore_errors=True)
    typer.echo(f"{out}: SHA-256 {sha256}. Next: fedscan job new {job} my-job --init {out}")
