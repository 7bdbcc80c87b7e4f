"""`fedscan job ...`: make, check, run and resume jobs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from fedscan.cli.output import fail, print_json, print_table

if TYPE_CHECKING:
    from fedscan.federation.findings import Finding
    from fedscan.federation.local_run import Listener

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Make, check, run and resume jobs. A job is three JSON files that carry a plan; it ships no code.",
)

Site = Annotated[
    list[str] | None,
    typer.Option(
        "--site",
        metavar="NAME=SITE.json",
        help="A site and its site.json (or its kit), or a slice store alone; once for each site.",
    ),
]
Init = Annotated[
    Path | None,
    typer.Option("--init", metavar="MODEL", help="Start from this model file (model.safetensors of another run)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


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
            template, out, settings or [], _names(sites), init, patients=_sizes(patients), sample_rate=sample_rate
        )
    except JobError as error:
        _fail_with(error.findings)
    if as_json:
        print_json({"job": str(out), "plan_digest": plan.digest, "plan": plan.model_dump(mode="json")})
    else:
        typer.echo(f"{out}: plan {plan.digest[:12]}, {plan.rounds} rounds. Next: fedscan job check {out}")


@app.command("check")
def check(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="A job folder.")],
    site: Site = None,
    init: Init = None,
    as_json: AsJson = False,
) -> None:
    """Say all that is wrong with a job, at once, before anything runs.

    With --site the sites' stores are checked too, and each site.json is asked what its policy has against the job.

    Example: `fedscan job check my-job --site a=A/site.json --site b=B/site.json`
    """
    from fedscan.federation import job_check, run_sites

    sources = run_sites.read(_sites(site))
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


@app.command("run")
def run(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="A job folder.")],
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="The run's folder; it must not exist or be empty.")],
    site: Site = None,
    init: Init = None,
    threads: Annotated[
        int, typer.Option(min=1, help="CPU threads of a store's trainer; a site.json has limits of its own.")
    ] = 1,
    no_policy: Annotated[
        bool,
        typer.Option("--no-policy", help="Take stores alone: no policy, no ledger; every output is stamped so."),
    ] = False,
    reproducible_noise: Annotated[
        int | None,
        typer.Option(
            metavar="SEED",
            help="Under DP: noise that anybody can repeat, for demos; every site's policy must allow it.",
        ),
    ] = None,
) -> None:
    """Run a job on this machine: a server and a process for each site, provisioned, over mutual TLS on loopback.

    Each site runs under the policy and the ledger of its site.json. Ends with RUN/model.safetensors. Whatever stops
    it, `fedscan job resume RUN` goes on from the newest checkpoint.

    Example: `fedscan job run my-job --site a=A/site.json --site b=B/site.json --out RUN`
    """
    from fedscan.federation import local_run
    from fedscan.federation.findings import JobError

    sites = _sites(site)
    if not sites:
        fail("no site is named: give --site NAME=SITE.json once for each site")
    try:
        model = local_run.run(
            job,
            sites,
            out,
            init,
            threads,
            _listener(),
            no_policy=no_policy,
            reproducible_noise_seed=reproducible_noise,
        )
    except JobError as error:
        _fail_with(error.findings)
    except local_run.RunError as error:
        fail(str(error))
    except OSError as error:
        fail(_disk(error))
    except KeyboardInterrupt:
        fail(f"stopped by you. Go on with: fedscan job resume {out}")
    typer.echo(str(model))


@app.command("resume")
def resume(run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")]) -> None:
    """Go on with a run from its newest checkpoint, in the same folder."""
    from fedscan.federation import local_run
    from fedscan.federation.findings import JobError

    try:
        model = local_run.resume(run_folder, _listener())
    except JobError as error:
        _fail_with(error.findings)
    except local_run.RunError as error:
        fail(str(error))
    except OSError as error:
        fail(_disk(error))
    except KeyboardInterrupt:
        fail(f"stopped by you. Go on with: fedscan job resume {run_folder}")
    typer.echo(str(model))


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


def _names(said: list[str] | None) -> list[str]:
    """A list with commas, over one option or several of them."""
    return [name.strip() for item in said or [] for name in item.split(",") if name.strip()]


def _sizes(patients: list[str] | None) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for item in _names(patients):
        name, _, size = item.partition("=")
        if not name or not size.isascii() or not size.isdigit() or int(size) < 1:
            fail(f"--patients must be NAME=NUMBER, NAME=NUMBER, ... of at least 1 patient, got {item!r}")
        if name in sizes:
            fail(f"--patients names {name!r} twice")
        sizes[name] = int(size)
    return sizes


def _sites(site: list[str] | None) -> dict[str, Path]:
    sites: dict[str, Path] = {}
    for item in site or []:
        name, sign, path = item.partition("=")
        if not sign or not name or not path:
            fail(f"--site must be NAME=SITE.json or NAME=STORE, got {item!r}")
        if name in sites:
            fail(f"--site names {name!r} twice: each site has one store")
        sites[name] = Path(path)
    return sites


def _disk(error: OSError) -> str:
    what = error.strerror or type(error).__name__
    where = f" ({error.filename})" if error.filename else ""
    return f"the run's folder: {what}{where}: mend that, and go on with `job resume` if it had begun"


def _listener() -> Listener:
    """Lines with the seconds since the start: readable in a terminal and in a log."""
    import time

    from fedscan.federation.local_run import Progress

    started = time.monotonic()

    def listen(progress: Progress) -> None:
        typer.echo(f"[{time.monotonic() - started:6.1f} s] {progress.text}", err=True)

    return listen


def _fail_with(findings: list[Finding]) -> NoReturn:
    for finding in findings:
        typer.secho(f"{finding.level}: {finding.where}: {finding.text}", err=True)
    raise typer.Exit(1)
