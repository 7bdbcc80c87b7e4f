"""`fedscan federation ...`: a provisioned federation, tried on one machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedscan.cli import revoke
from fedscan.cli.output import fail

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Try the real federation on one machine; revoke who may no longer take part in one.",
)


app.command("revoke")(revoke.make)


@app.command("demo")
def demo(
    out: Annotated[Path, typer.Option("--out", help="The demo's folder.")] = Path("federation"),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Remove what an earlier demo left there, and start anew.")
    ] = False,
) -> None:
    """Provision site_configs/project.yml on this machine, install three sites, and run a private job through them.

    About 3 minutes on two cores. The server and each site is a process of its own, started from its kit over mutual
    TLS; the job goes in and its result comes out through the admin API, as a lead of the consortium. All processes end
    with the command. Whatever stops it, the same command goes on where it was. The last line is the model's path.

    Example: `fedscan federation demo --out federation`
    """
    import os

    from filelock import Timeout

    from fedscan.cli import demo_steps, federation_steps
    from fedscan.cli.demo import template_folder
    from fedscan.cli.demo_progress import StepProgress

    out = out.resolve()  # kits and processes work in folders of their own
    steps = federation_steps.STEPS
    # Else matplotlib writes its list of fonts into the home folder.
    os.environ.setdefault("MPLCONFIGDIR", str(out.absolute() / federation_steps.CACHE))
    try:
        with demo_steps.locked(out):
            if fresh:
                federation_steps.clear(out)
            state = demo_steps.State(out, federation_steps.SETTINGS)
            progress = StepProgress([s.title for s in steps], [s.usual_s for s in steps])
            shown = demo_steps.Demo(out, federation_steps.SETTINGS, template_folder(), progress, state)
            demo_steps.run_steps(shown, steps)
    except Timeout:
        fail(f"another demo is working on {out}: wait for it, or choose another --out")
    except federation_steps.failures() as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail(f"stopped by you. Go on with: fedscan federation demo --out {out}")
    typer.echo(str(out / federation_steps.RUN / demo_steps.MODEL))
