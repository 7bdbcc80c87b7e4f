"""`fedscan policy ...`: what a site would say to a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedscan.cli.output import fail, print_json, print_table, say
from fedscan.cli.site import AsJson

if TYPE_CHECKING:
    from fedscan.federation.findings import Finding
    from fedscan.plan import Plan
    from fedscan.privacy.forecast import Forecast
    from fedscan.privacy.outlook import Outlook
    from fedscan.privacy.policy import Policy, Unreadable
    from fedscan.privacy.site_file import Site

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="A site's policy (docs/site.md).")


@app.callback()
def _policy() -> None:
    """A group, though it has one command yet."""


@dataclass(frozen=True)
class _Answer:
    site: str
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    forecast: Forecast | None
    outlook: Outlook | None

    def as_dict(self) -> dict[str, Any]:
        return {"ok": not self.reasons, **asdict(self)}


@app.command("check")
def check(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="A job folder.")],
    site: Annotated[
        list[str],
        typer.Option(
            "--site", metavar="KIT|SITE.json", help="The site to ask, also as NAME=SITE.json; once for each site."
        ),
    ],
    submitter: Annotated[
        str | None,
        typer.Option("--submitter", help="Who would submit: a certificate's name or SHA-256 fingerprint."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a site what it would say to a job: every reason against it, and what the job would cost. Notes nothing.

    Exit status 1: a site would refuse.

    Example: `fedscan policy check my-job --site a/site.json`
    """
    answers = [_ask(job, opened, submitter) for opened in [_open(item) for item in site]]
    if as_json:
        print_json([answer.as_dict() for answer in answers])
    else:
        for answer in answers:
            _show(job, answer)
    if any(answer.reasons for answer in answers):
        raise typer.Exit(1)


def refusals(job: Path, site_files: Mapping[str, Path]) -> list[Finding]:
    """What these sites (name to site.json) would say against a job whose plan can be read, as findings."""
    from fedscan.federation.findings import Finding
    from fedscan.privacy.site_file import Site

    return [
        Finding("error", f"--site {name}", f"this site would refuse the job: {reason}")
        for name, path in sorted(site_files.items())
        for reason in _ask(job, Site.open(path), None).reasons
    ]


def _open(said: str) -> Site:
    from fedscan.privacy.site_file import Site, SiteError

    name, sign, path = said.partition("=")
    try:
        opened = Site.open(path if sign and not Path(said).exists() else said)
    except SiteError as error:
        fail(str(error))
    if sign and not Path(said).exists() and name != opened.name:
        fail(f"--site {said}: that site's name is {opened.name!r}: name it as plans do")
    return opened


def _ask(job: Path, site: Site, submitter: str | None) -> _Answer:
    from fedscan.plan import Plan, Submission
    from fedscan.privacy import charging
    from fedscan.privacy.facts import Submitter
    from fedscan.privacy.policy import Policy
    from fedscan.training.site_store import store_facts

    plan, policy = _plan(job), site.policy()
    verdict = charging.preview(
        site,
        plan,
        submission=Submission.new(),
        submitter=Submitter(submitter or _some_submitter(policy), submitter or ""),
        store=store_facts(site.store),
    )
    forecast = _forecast(plan, policy, site)
    notes = []
    if isinstance(policy, Policy) and policy.allowed_submitters != "any" and submitter is None:
        notes.append(f"who may submit: {', '.join(policy.allowed_submitters) or 'nobody'} (ask with --submitter)")
    if forecast is not None and forecast.rounds_that_fit < forecast.rounds_planned and not verdict.reasons:
        notes.append(
            f"the budget holds {forecast.rounds_that_fit} of the {forecast.rounds_planned} planned rounds: "
            "this site will refuse the others"
        )
    expected = _outlook(plan, site.name) if isinstance(plan, Plan) else None
    return _Answer(site.name, verdict.reasons, tuple(notes), forecast, expected)


def _some_submitter(policy: Policy | Unreadable) -> str:
    """Who submits is not known yet: the first who may, so that the other rules are asked."""
    from fedscan.privacy.policy import Policy

    named = policy.allowed_submitters if isinstance(policy, Policy) else "any"
    return named[0] if isinstance(named, tuple) and named else "not known yet"


def _plan(job: Path) -> Plan | Unreadable:
    from fedscan.federation import job_check, job_folder
    from fedscan.federation.findings import JobError
    from fedscan.privacy.policy import Unreadable

    if other := job_check.no_job(job):
        return Unreadable((f"{other.where}: {other.text}",))
    try:
        return job_folder.read_plan(job)
    except JobError as error:
        return Unreadable(tuple(f"{finding.where}: {finding.text}" for finding in error.findings))


def _forecast(plan: Plan | Unreadable, policy: Policy | Unreadable, site: Site) -> Forecast | None:
    """What cannot be forecast is among the verdict's reasons."""
    from fedscan.privacy import charging
    from fedscan.privacy.accounting import AccountingError
    from fedscan.privacy.event import EventError
    from fedscan.privacy.forecast import forecast
    from fedscan.privacy.policy import Unreadable

    ledger = charging.ledger_facts(site)
    if isinstance(plan, Unreadable) or isinstance(policy, Unreadable) or isinstance(ledger, Unreadable):
        return None
    try:
        return forecast(plan, policy, site.name, ledger)
    except (EventError, AccountingError):
        return None


def _outlook(plan: Plan, site: str) -> Outlook | None:
    from fedscan.privacy.outlook import noise_per_patient, outlook

    if plan.privacy is None or site not in plan.privacy.sites:
        return None
    declared = plan.privacy.sites[site].declared_patients
    return outlook(noise_per_patient(plan.privacy, site), declared)


def _show(job: Path, answer: _Answer) -> None:
    from fedscan.privacy.outlook import WARN_ABOVE

    rows: list[tuple[str, object]] = []
    if (cost := answer.forecast) is not None:
        at = f"at delta {cost.delta:g}"
        rows += [
            (f"epsilon spent, {at}", f"{cost.epsilon_spent:.4g} of {cost.max_epsilon:g}"),
            ("epsilon after the next round", f"{cost.epsilon_after_round:.4g}"),
            (f"epsilon after all {cost.rounds_planned} rounds", f"{cost.epsilon_after_run:.4g}"),
            ("rounds that fit", cost.rounds_that_fit),
        ]
    expected = answer.outlook
    if expected is not None:
        rows.append(("noise per patient (nu)", f"{expected.noise_per_patient:.3g}: {expected.word}"))
        rows.append(("pictures to expect", expected.text))
        if expected.patients_for_next is not None:
            rows.append((f"{expected.next_word!r} needs", f"{expected.patients_for_next} patients at this site"))
    if rows:
        print_table(f"{job} at {answer.site}", ("what", "value"), rows)
    for note in answer.notes:
        say(f"note: {note}")
    if expected is not None and expected.warns:
        text = f"noise per patient is above {WARN_ABOVE:g}: hardly more than the public start is to be expected"
        typer.secho(f"warning: {text} (docs/privacy.md)", err=True)
    for reason in answer.reasons:
        say(f"refused: {reason}")
    if not answer.reasons:
        typer.echo(f"{answer.site} would run {job}.")
