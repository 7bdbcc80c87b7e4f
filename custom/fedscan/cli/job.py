"""`fedscan job ...`: make, check and renew jobs; job_run.py runs them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedscan.cli import job_run
from fedscan.cli.job_common import AsJson, Init, Job, Site, fail_with, named_sites, names
from fedscan.cli.output import fail, print_json, print_table

if TYPE_CHECKING:
    from fedscan.federation.findings import Finding

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Make, check, submit, run, watch, resume jobs. A job is three JSON files that carry a plan; it ships no code.",
)


@app.command("new")
def new(
    template: Annotated[
        Path, typer.Argument(metavar="TEMPLATE", help="A template, such as jobs/ct_fedavg, or another job.")
    ],
    out: Annotated[Path, typer.Argument(metavar="JOB", help="The job folder to make; it must not exist.")],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Set a field of the plan: rounds=20, training.local_epochs=5, model.preset=tiny (docs/plan.md).",
        ),
    ] = None,
    sites: Annotated[
        list[str] | None,
        typer.Option("--sites", metavar="A,B,C", help="Names of the sites; `job run` names them otherwise."),
    ] = None,
    patients: Annotated[
        list[str] | None,
        typer.Option(
            "--patients",
            metavar="A=500,B=300",
            help="Under DP: the number of patients that each site declares, which becomes public; names the sites too.",
        ),
    ] = None,
    sample_rate: Annotated[
        float | None,
        typer.Option(
            "--sample-rate",
            metavar="Q",
            help="With --patients: the probability with which each patient is drawn in a step (default: 0.25, or what "
            "the template says).",
        ),
    ] = None,
    init: Init = None,
    as_json: AsJson = False,
) -> None:
    """Make a job from a template: the plan resolved in full, with its digest.

    Under DP the noise is found here, for the plan's target epsilon over all its rounds at the site that samples most.

    Examples: `fedscan job new jobs/ct_fedavg my-job --set rounds=20 --set training.local_epochs=5`;
    `fedscan job new jobs/ct_fedavg_dp my-job --patients a=500,b=300,c=800 --set privacy.target_epsilon=3`
    """
    from fedscan.federation import job_folder
    from fedscan.federation.findings import JobError

    try:
        plan = job_folder.new(
            template, out, settings or [], names(sites), init, patients=_sizes(patients), sample_rate=sample_rate
        )
    except JobError as error:
        fail_with(error.findings)
    if as_json:
        print_json({"job": str(out), "plan_digest": plan.digest, "plan": plan.model_dump(mode="json")})
    else:
        typer.echo(f"{out}: plan {plan.digest[:12]}, {plan.rounds} rounds. Next: fedscan job check {out}")


@app.command("check")
def check(
    job: Job,
    site: Site = None,
    init: Init = None,
    as_json: AsJson = False,
) -> None:
    """Say all that is wrong with a job, at once, before anything runs.

    With --site the sites' stores are checked too, and each site.json is asked what its policy has against the job.

    Example: `fedscan job check my-job --site a=A/site.json --site b=B/site.json`
    """
    from fedscan.federation import job_check, run_sites

    sources = run_sites.read(named_sites(site))
    findings = [*sources.errors, *job_check.check(job, sources.stores, init)]
    findings += _refusals(job, sources.site_files, findings)
    errors = [f for f in findings if f.level == "error"]
    if as_json:
        print_json({"ok": not errors, "findings": [f.as_dict() for f in findings]})
    elif findings:
        print_table(f"{job}", ("level", "where", "what"), [(f.level, f.where, f.text) for f in findings])
    if errors:
        raise typer.Exit(1)
    if not as_json:
        typer.echo(f"{job} is fit to run.")


@app.command("renew")
def renew(job: Job, as_json: AsJson = False) -> None:
    """Make a new submission of a job: new run, new nonce, good for 30 days; the plan stays.

    A site takes a submission once: a job that was submitted before must be renewed to be submitted again.
    """
    from fedscan.federation import job_check, job_folder
    from fedscan.federation.findings import JobError
    from fedscan.plan import Submission

    if finding := job_check.no_job(job):
        fail_with([finding])
    try:
        plan = job_folder.read_plan(job)
        submission = Submission.new()
        job_folder.renew(job, submission)
    except JobError as error:
        fail_with(error.findings)
    except OSError as error:
        fail(f"{job} cannot be written: {error.strerror}")
    if as_json:
        print_json({"job": str(job), "plan_digest": plan.digest, **submission.model_dump(mode="json")})
    else:
        typer.echo(f"{job}: run {submission.run_id[:12]}, plan {plan.digest[:12]}, good until {submission.expires}")


@app.command("fields")
def fields(
    markdown: Annotated[bool, typer.Option("--markdown", help="As the page docs/plan.md.")] = False,
    as_json: AsJson = False,
) -> None:
    """List every field of the plan with its default, what is allowed and what it means."""
    from fedscan.cli import plan_fields

    if markdown:
        typer.echo(plan_fields.markdown(), nl=False)
    elif as_json:
        print_json([dict(zip(plan_fields.COLUMNS, row, strict=True)) for row in plan_fields.rows()])
    else:
        print_table("plan", plan_fields.COLUMNS, list(plan_fields.rows()), whole=("field",))


def _refusals(job: Path, site_files: dict[str, Path], known: list[Finding]) -> list[Finding]:
    """Of sites that nothing was found against yet: a store that cannot be read, say, would be told of twice."""
    from fedscan.cli import policy
    from fedscan.federation import job_folder
    from fedscan.federation.findings import JobError

    faulty = {finding.where for finding in known if finding.level == "error"}
    asked = {name: path for name, path in site_files.items() if not {f"--site {name}", f"site {name}"} & faulty}
    try:
        job_folder.read_plan(job)
    except JobError:
        return []
    return policy.refusals(job, asked)


def _sizes(patients: list[str] | None) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for item in names(patients):
        name, _, size = item.partition("=")
        if not name or not size.isascii() or not size.isdigit() or int(size) < 1:
            fail(f"--patients must be NAME=NUMBER, NAME=NUMBER, ... of at least 1 patient, got {item!r}")
        if name in sizes:
            fail(f"--patients names {name!r} twice")
        sizes[name] = int(size)
    return sizes


job_run.register(app)
