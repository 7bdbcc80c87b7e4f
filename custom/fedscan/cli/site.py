"""`fedscan site ...`: make a site's own files, approve plans."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedscan.cli.output import fail, print_json

if TYPE_CHECKING:
    from fedscan.plan import Plan
    from fedscan.privacy.approvals import Approvals
    from fedscan.privacy.site_file import Site

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="A hospital's own side of the federation: its key, ledger and policy (docs/site.md).",
)

AnchorFile = Annotated[
    Path | None,
    typer.Option(
        "--anchor",
        metavar="FILE|DIR",
        help="Where the ledger's counter is kept against a rolled-back disk: a file on another volume. For `site "
        "install` also a folder there, which takes the audit log's too; on an installed site it moves them.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
SiteOption = Annotated[
    Path, typer.Option("--site", metavar="KIT|SITE.json", help="The site: its site.json, or the kit that holds it.")
]


@app.command("init")
def init(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The site's folder to make, or the kit that it got from the lead.")
    ],
    name: Annotated[str, typer.Option("--name", help="The site's name in the federation and in plans.")],
    store: Annotated[Path, typer.Option("--store", metavar="STORE", help="The slice store that jobs train on.")],
    anchor: AnchorFile = None,
    private: Annotated[
        Path | None,
        typer.Option(
            "--private", metavar="DIR", help="With a kit: where key, ledger, policy and state go; default KIT.private."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="Set a field of the policy: max_epsilon=4, min_patients=200."
        ),
    ] = None,
    cores: Annotated[int, typer.Option(min=1, help="CPU threads that jobs may use.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Make a site: its key, an empty ledger with its anchor, a policy that demands differential privacy, site.json.

    Nothing that is there is overwritten; a stopped `init` is ended by the same command.

    Example: `fedscan site init site-a --name a --store STORE --anchor /mnt/other/a.anchor`
    """
    from fedscan.privacy.limits import Limits
    from fedscan.privacy.site_file import SiteError
    from fedscan.privacy.site_init import init as make
    from fedscan.privacy.site_init import policy_with

    try:
        made = make(
            folder,
            name=name,
            store=store,
            anchor=anchor,
            private=private,
            policy=policy_with(settings or []),
            limits=Limits(cores=cores),
        )
    except SiteError as error:
        fail(str(error))
    except OSError as error:
        fail(f"the site's files cannot be written: {error.strerror} ({error.filename}): the same command goes on")
    if as_json:
        print_json({"site": str(made.site.path), "warnings": list(made.warnings)})
        return
    for warning in made.warnings:
        typer.secho(f"warning: {warning}", err=True)
    typer.echo(
        f"{made.site.path}: look at the policy in {made.site.file.policy}, keep copies of the keys (docs/site.md)"
    )


@app.command("approve")
def approve(
    site: SiteOption,
    plan: Annotated[
        str | None,
        typer.Argument(
            metavar="JOB|DIGEST",
            help="A job folder, or a plan's digest (its first 12 digits do for one that is listed).",
        ),
    ] = None,
    show_list: Annotated[
        bool, typer.Option("--list", help="Show refused plans with the reasons, and approvals.")
    ] = False,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Take the approval back.")] = False,
    as_json: AsJson = False,
) -> None:
    """Approve a plan at this site, by its digest; it is recorded under your name and signed with the site's key.

    The rest of the policy holds all the same. With `--list`: which plans were refused here, and why.

    Example: `fedscan site approve 3f0c... --site SITE.json`
    """
    from fedscan.privacy.approvals import Approvals
    from fedscan.privacy.site_file import Site, SiteError

    try:
        opened = Site.open(site)
        approvals = Approvals(opened.state, opened.key())
    except SiteError as error:
        fail(str(error))
    if show_list:
        _show(approvals, opened, as_json)
        return
    if plan is None:
        fail("name a job folder or a plan's digest, or ask with --list")
    digest, found = _digest_of(plan, approvals)
    try:
        if withdraw:
            done = "withdrawn" if approvals.withdraw(digest) else "was not approved"
        else:
            approvals.approve(digest)
            done = "approved"
    except OSError as error:
        fail(f"the approval cannot be written: {error.strerror}")
    if as_json:
        print_json({"plan_digest": digest, "done": done})
    else:
        typer.echo(f"{digest}: {done} at {opened.name}" + (f" ({_describe(found)})" if found is not None else ""))


def _digest_of(said: str, approvals: Approvals) -> tuple[str, Plan | None]:
    from fedscan.federation import job_folder
    from fedscan.federation.findings import JobError

    if re.fullmatch(r"[0-9a-f]{12,64}", said):
        plans = {one.plan.digest: one.plan for one in approvals.refused() if one.plan is not None}
        matching = [digest for digest in {*plans, *approvals.approved()} if digest.startswith(said)]
        if len(said) == 64:
            return said, plans.get(said)
        if len(matching) != 1:
            fail(f"{len(matching)} known plans begin with {said}: give all 64 digits, or the job folder")
        return matching[0], plans.get(matching[0])
    try:
        plan = job_folder.read_plan(Path(said))
    except JobError as error:
        fail(f"neither a plan's digest nor a job folder: {error}")
    return plan.digest, plan


def _show(approvals: Approvals, site: Site, as_json: bool) -> None:
    approved = approvals.approved()
    refused = list(approvals.refused())
    if as_json:
        print_json(
            {
                "approved": [one.__dict__ for one in approved.values()],
                "refused": [
                    {
                        "time": one.time,
                        "plan_digest": one.plan.digest if one.plan else None,
                        "reasons": list(one.reasons),
                        "plan": one.plan.model_dump(mode="json") if one.plan else None,
                    }
                    for one in refused
                ],
            }
        )
        return
    typer.echo(f"{site.name}: {len(refused)} refused plans, the newest first")
    for one in refused:
        digest = one.plan.digest if one.plan else ""
        what = _describe(one.plan) if one.plan else "no plan that is understood here"
        typer.echo(f"{one.time}  {digest[:12] or '-':12}  {what}{'; approved' if digest in approved else ''}")
        for reason in one.reasons:
            typer.echo("    " + "".join(c if c.isprintable() else "?" for c in reason))
    typer.echo(f"{site.name}: {len(approved)} approved plans")
    for approval in approved.values():
        typer.echo(f"{approval.time}  {approval.plan_digest[:12]}  by {approval.approved_by}")


def _describe(plan: Plan) -> str:
    privacy = plan.privacy
    private = "no DP" if privacy is None else f"noise {privacy.noise_multiplier:g}, delta {privacy.delta:g}"
    return f"{plan.name}, {plan.rounds} rounds, {private}"
