"""`fedscan demo`: the whole story on phantoms, from three hospitals' exports to a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedscan.cli.output import fail

if TYPE_CHECKING:
    from fedscan.cli.demo_steps import Settings

REPORT = "report.html"


def demo(
    out: Annotated[Path, typer.Option("--out", help="The demo's folder.")] = Path("demo"),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Remove what an earlier demo left there, and start anew.")
    ] = False,
    job: Annotated[
        Path | None, typer.Option("--job", help="Job template, with ct_fedavg_dp beside it; default: jobs/ct_fedavg.")
    ] = None,
) -> None:
    """Three hospitals of phantom patients train one model, with and without differential privacy, from a public start.

    About 6 minutes on two cores. Writes exports/, stores/, start/, sites/, job/, run/, synthetic/, the same of the
    private run, and report.html into --out. Whatever stops it, the same command goes on where it was; once finished,
    it only says where the report is. The last line is the report's path.
    """
    from fedscan.cli.demo_steps import Settings

    try:
        typer.echo(str(tell_story(out, Settings(), fresh=fresh, template=job or template_folder())))
    except KeyboardInterrupt:
        fail(f"stopped by you. Go on with: fedscan demo --out {out}")


def template_folder() -> Path:
    """jobs/ct_fedavg of the checkout that this package lies in."""
    import fedscan

    return Path(fedscan.__file__).resolve().parents[2] / "jobs" / "ct_fedavg"


def tell_story(out: Path, settings: Settings, *, fresh: bool, template: Path) -> Path:
    """All steps that are not done yet; returns the report's path. Ends the command where something is wrong."""
    from filelock import Timeout

    from fedscan.cli import demo_steps, demo_story
    from fedscan.cli.demo_progress import StepProgress

    _check_template(template)
    try:
        with demo_steps.locked(out):
            if fresh:
                demo_steps.clear(out)
            state = demo_steps.State(out, settings)
            steps = demo_story.STEPS
            progress = StepProgress([s.title for s in steps], [s.usual_s for s in steps])
            demo_steps.run_steps(demo_steps.Demo(out, settings, template, progress, state), steps)
    except Timeout:
        fail(f"another demo is working on {out}: wait for it, or choose another --out")
    except demo_story.failures() as error:
        fail(str(error))
    return out / REPORT


def _check_template(template: Path) -> None:
    from fedscan.cli.demo_steps import PRIVATE_TEMPLATE

    for folder in (template, template.with_name(PRIVATE_TEMPLATE)):
        if not (folder / "meta.json").is_file():
            fail(f"no job template in {folder}: run the demo from a checkout, or name jobs/ct_fedavg with --job")
