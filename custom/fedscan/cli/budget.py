"""`fedscan budget`: what a site's ledger has spent, what is left, and what still fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedscan.cli.output import fail, print_json, print_table
from fedscan.cli.site import AsJson, SiteOption

if TYPE_CHECKING:
    from fedscan.plan import Plan
    from fedscan.privacy.ledger import Ledger
    from fedscan.privacy.ledger_report import JobSpend
    from fedscan.privacy.policy import Policy
    from fedscan.privacy.site_file import Site


def budget(
    site: SiteOption,
    plan: Annotated[
        Path | None, typer.Option("--plan", metavar="JOB", help="Say how many more rounds of this job fit.")
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Check all that the ledger names: patients behind fingerprints, the server's last head."
        ),
    ] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw epsilon over the charged rounds.")
    ] = None,
    delta: Annotated[
        float | None, typer.Option("--delta", help="Report at this delta; default: the policy's max_delta.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what was spent on this site's patients over all jobs, what is left, and what still fits.

    Every entry of the ledger is verified first, so this fails where it was edited, cut or rolled back.

    Example: `fedscan budget --site SITE.json --plan JOB`
    """
    from fedscan.privacy.accounting import AccountingError
    from fedscan.privacy.ledger import LedgerError
    from fedscan.privacy.policy import Unreadable
    from fedscan.privacy.site_file import Site, SiteError

    try:
        opened = Site.open(site)
        policy = opened.policy()
        facts = _facts(opened, None if isinstance(policy, Unreadable) else policy, delta, plan)
        checked = _verify(facts.ledger, opened) if verify else None
        if plot is not None:
            _plot(facts, plot)
        report = facts.as_json() | ({"verified": checked} if checked else {})
    except LedgerError as error:
        fail(f"ledger: {error}")
    except (SiteError, AccountingError) as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.strerror} ({error.filename})")
    if as_json:
        print_json(report)
        return
    _print(report)
    if plot is not None:
        typer.echo(f"drawn: {plot}")


@dataclass(frozen=True)
class _Facts:
    site: str
    ledger: Ledger
    policy: Policy | None
    delta: float
    jobs: Sequence[JobSpend]
    plan: Plan | None

    def as_json(self) -> dict[str, Any]:
        from fedscan.privacy.ledger_report import incidents

        spent = self.ledger.epsilon(self.delta)
        events = self.ledger.events()
        most = self.policy.max_epsilon if self.policy else None
        comparable = self.policy is not None and self.delta == self.policy.max_delta
        return {
            "site": self.site,
            "unit": events[0].unit if events else None,
            "delta": self.delta,
            "epsilon": spent,
            "unprotected_runs": self.ledger.unprotected_runs,
            "max_epsilon": most,
            "left": max(0.0, most - spent) if most is not None and comparable else None,
            "jobs": [_job(job, self.delta) for job in self.jobs],
            "plan": self._fits(),
            "incidents": incidents(self.ledger.lines),
            "entries": self.ledger.head.count,
            "head": {"count": self.ledger.head.count, "mac": self.ledger.head.mac},
        }

    def _fits(self) -> dict[str, Any] | None:
        """How many more rounds of the plan the policy's budget has room for, whatever --delta says."""
        from fedscan.privacy.accounting import rounds_that_fit
        from fedscan.privacy.event import EventError, round_event

        if self.plan is None:
            return None
        try:
            event = round_event(self.plan, self.site)
        except EventError as error:
            fail(str(error))
        if self.policy is None:
            fail("the policy cannot be read, so nothing fits: see `fedscan policy check`")
        most, delta = self.policy.max_epsilon, self.policy.max_delta
        fit = rounds_that_fit(self.ledger.events(), event, delta, most)
        return {
            "digest": self.plan.digest,
            "rounds": self.plan.rounds,
            "rounds_that_fit": fit,
            "epsilon_after_one": self.ledger.epsilon(delta, event),
        }


def _facts(site: Site, policy: Policy | None, delta: float | None, job: Path | None) -> _Facts:
    from fedscan.federation import job_folder
    from fedscan.federation.findings import JobError
    from fedscan.privacy.ledger_report import by_job

    try:
        plan = job_folder.read_plan(job) if job is not None else None
    except JobError as error:
        fail(str(error))
    if delta is None and policy is None:
        fail("the policy cannot be read (`fedscan policy check` says why): give --delta to see what was spent")
    ledger = site.open_ledger()
    at = delta if delta is not None else policy.max_delta if policy else 0.0
    return _Facts(site.name, ledger, policy, at, by_job(ledger.lines), plan)


def _job(job: JobSpend, delta: float) -> dict[str, Any]:
    return {
        "run_id": job.run_id,
        "plan_digest": job.plan_digest,
        "rounds": job.rounds,
        "answers": job.answers,
        "torn": job.torn,
        "steps": job.steps,
        "epsilon_alone": job.epsilon(delta),
        "first": job.first,
        "last": job.last,
        "events": [event.model_dump(mode="json") for event in job.events],
    }


def _verify(ledger: Ledger, site: Site) -> dict[str, Any]:
    """What opening the ledger does not look at. Raises LedgerError."""
    from fedscan.privacy.ledger import LedgerError
    from fedscan.privacy.ledger_witness import received_head

    populations = {name: len(patients) for name, patients in ledger.populations.items()}
    recorded = received_head(site.state)
    if recorded is not None and not ledger.contains(recorded):
        raise LedgerError(
            "the server sent back a head that this ledger does not contain: it was rolled back, or is another's copy",
            recorded.count,
        )
    return {
        "entries": ledger.head.count,
        "populations": len(populations),
        "server_head": None if recorded is None else recorded.count,
    }


def _plot(facts: _Facts, path: Path) -> None:
    from ctslices.files import write_whole
    from fedscan.cli.budget_plot import png
    from fedscan.privacy.ledger_report import history

    if not path.absolute().parent.is_dir():
        fail(f"--plot: there is no folder {path.absolute().parent}")
    limit = facts.policy.max_epsilon if facts.policy and facts.policy.max_delta == facts.delta else None
    write_whole(path, png(history(facts.ledger.lines, facts.delta), facts.delta, limit, facts.site))


def _print(report: Mapping[str, Any]) -> None:
    whom = {"patient": "for each patient", "image": "for each image; patients are not bounded", None: ""}[
        report["unit"]
    ]
    typer.echo(f"{report['site']}: epsilon {report['epsilon']:.4g} spent at delta {report['delta']:g} {whom}".rstrip())
    if (runs := report["unprotected_runs"]) > 0:
        what = "run without differential privacy was" if runs == 1 else "runs without differential privacy were"
        typer.echo(f"{runs} {what} trained here: no epsilon bounds what came of that")
    if report["max_epsilon"] is None:
        typer.echo("the policy cannot be read: nothing can be spent")
    elif report["left"] is not None:
        typer.echo(f"left of the policy's {report['max_epsilon']:g}: {report['left']:.4g}")
    if (plan := report["plan"]) is not None:
        after = f"the next brings epsilon to {plan['epsilon_after_one']:.4g}"
        typer.echo(
            f"plan {plan['digest'][:12]} of {plan['rounds']} rounds: {plan['rounds_that_fit']} more fit; {after}"
        )
    if report["jobs"]:
        print_table(
            "by job (epsilon of each alone; together they come to less than their sum)",
            ("run", "plan", "rounds", "answers", "torn", "steps", "epsilon", "last"),
            [_row(job) for job in report["jobs"]],
            whole=("run", "plan", "epsilon", "last"),
        )
    for incident in report["incidents"]:
        typer.echo(incident)
    if (verified := report.get("verified")) is not None:
        server = verified["server_head"]
        heard = (
            "no head came from a server yet" if server is None else f"the server's last head is entry {server} of it"
        )
        sets = "1 set" if verified["populations"] == 1 else f"{verified['populations']} sets"
        typer.echo(f"verified: {verified['entries']} entries, {sets} of patients behind them; {heard}")


def _row(job: Mapping[str, Any]) -> tuple[object, ...]:
    run, plan = job["run_id"], job["plan_digest"]
    return (
        run[:12] if run else "(restored)",
        plan[:12] if plan else "",
        job["rounds"],
        job["answers"],
        job["torn"],
        job["steps"],
        f"{job['epsilon_alone']:.4g}",
        (job["last"] or "")[:10],
    )
