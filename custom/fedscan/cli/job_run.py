"""`fedscan job submit|run|watch|resume|download`: on this machine, or over an admin kit in a provisioned federation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedscan.cli.job_common import AsJson, Init, Job, Kit, Site, listener, named_sites, spoken
from fedscan.cli.job_curves import curves
from fedscan.cli.output import fail, print_json, say

if TYPE_CHECKING:
    from fedscan.federation.local_run import Listener, Progress
    from fedscan.federation.verdict import Verdict

_JOB_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

Which = Annotated[
    str, typer.Argument(metavar="RUN|JOB_ID", help="A run's folder; with --kit a job's id, as `job submit` printed it.")
]
UntilDone = Annotated[
    bool,
    typer.Option(
        "--until-done",
        help="Go on by itself when the job is lost, from the newest checkpoint, as long as that brings rounds.",
    ),
]


def register(app: typer.Typer) -> None:
    """Adds the commands to `fedscan job`."""
    for command in (submit, run, watch, resume, download, curves):
        app.command(command.__name__)(command)


def submit(job: Job, kit: Kit = None, as_json: AsJson = False) -> None:
    """Sign a job with your key and submit it to a provisioned federation; prints the job's id.

    The job goes as it is: `fedscan job renew JOB` first, if it was submitted before.

    Example: `fedscan job submit my-job --kit prod_00/lead@fedscan.example.org`
    """
    from fedscan.federation import remote_run

    if kit is None:
        fail("submit needs --kit ADMIN_KIT; `fedscan job run` without --kit runs a job on this machine")
    with spoken("stopped by you: whether the job was submitted is shown by `nvflare job list`"):
        done = remote_run.submit(job, kit)
    if as_json:
        print_json({"job_id": done.job_id, "run_id": done.run_id, "plan_digest": done.plan_digest})
    else:
        typer.echo(done.job_id)


def run(
    job: Job,
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="The run's folder; it must not exist or be empty.")],
    kit: Kit = None,
    until_done: UntilDone = False,
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
    as_json: AsJson = False,
) -> None:
    """Run a job to its end: in a provisioned federation (--kit), or on this machine (--site).

    On this machine a server and a process for each site are provisioned in RUN, over mutual TLS on loopback, each site
    under the policy and the ledger of its site.json. Ends with RUN/model.safetensors and RUN/verdict.json. Whatever
    stops it, `fedscan job resume RUN` goes on from the newest checkpoint.

    Examples: `fedscan job run my-job --kit prod_00/lead@fedscan.example.org --out RUN --until-done`;
    `fedscan job run my-job --site a=A/site.json --site b=B/site.json --out RUN`
    """
    sites = named_sites(site)
    if kit is not None:
        if sites or init or no_policy or reproducible_noise is not None:
            fail("--kit and --site (with --init, --no-policy, --reproducible-noise) exclude each other")
        _remote_run(job, kit, out, until_done, as_json)
        return
    if not sites:
        fail("no site is named: give --site NAME=SITE.json once for each site, or --kit for a provisioned federation")
    from fedscan.federation import local_run

    with spoken(f"stopped by you. Go on with: fedscan job resume {out}"):
        model = local_run.run(
            job,
            sites,
            out,
            init,
            threads,
            listener(),
            no_policy=no_policy,
            reproducible_noise_seed=reproducible_noise,
        )
    _show_local(model, as_json)


def watch(which: Which, kit: Kit = None, as_json: AsJson = False) -> None:
    """Show a run's rounds as they come: who answered, loss, epsilon by site, time left. Ctrl-C only ends the watching.

    When the job ends, RUN gets what it came to. With --json each record of rounds.jsonl is printed as a line.

    Examples: `fedscan job watch RUN`; `fedscan job watch JOB_ID --kit prod_00/lead@fedscan.example.org`
    """
    from fedscan.federation import local_watch, remote_run

    listen = _json_lines() if as_json else listener()
    with spoken("stopped by you"):
        try:
            if _is_job(which, kit):
                assert kit is not None
                status = remote_run.watch_job(which, kit, listen)
                say(f"{status}. What it came to: fedscan job download {which} --kit {kit} --out RUN", err=True)
            elif _has_kit(Path(which)):
                judged = remote_run.watch(Path(which), listen)
                if judged is not None:
                    _show(judged, Path(which), as_json=False)
            else:
                local_watch.watch(Path(which), listen)
        except KeyboardInterrupt:
            typer.echo("you stopped watching: the run goes on", err=True)


def resume(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    until_done: UntilDone = False,
    as_json: AsJson = False,
) -> None:
    """Go on with a run from its newest checkpoint, in the same folder and the same federation.

    In a provisioned federation that is a new job of the same plan; sites charge no round again whose answer they hold.
    """
    from fedscan.federation import local_run, remote_run

    with spoken(f"stopped by you. Go on with: fedscan job resume {run_folder}"):
        if _has_kit(run_folder):
            _show(remote_run.resume(run_folder, listener(), until_done=until_done), run_folder, as_json)
        else:
            _show_local(local_run.resume(run_folder, listener()), as_json)


def download(
    which: Which,
    kit: Kit = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="RUN", help="With a job's id: the folder to make of it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch model.safetensors, rounds.jsonl and verdict.json of a job that ended, whatever NVFlare calls its end.

    Of a job whose server process died the model is made of its newest checkpoint; the verdict says that it is not good.

    Examples: `fedscan job download RUN`; `fedscan job download JOB_ID --kit prod_00/lead@fedscan.example.org --out RUN`
    """
    from fedscan.federation import remote_run

    with spoken("stopped by you: nothing at the server was changed"):
        if _is_job(which, kit):
            assert kit is not None
            if out is None:
                fail("--out RUN is missing: the folder to make of the job")
            _show(remote_run.adopt(which, kit, out, listener()), out, as_json)
        else:
            _show(remote_run.download(Path(which), listener()), Path(which), as_json)


def _remote_run(job: Path, kit: Path, out: Path, until_done: bool, as_json: bool) -> None:
    from fedscan.federation import remote_run

    stopped = f"stopped by you; a job that was submitted goes on. Follow it with: fedscan job watch {out}"
    with spoken(stopped):
        _show(remote_run.run(job, kit, out, listener(), until_done=until_done), out, as_json)


def _is_job(which: str, kit: Path | None) -> bool:
    if Path(which).is_dir():
        return False
    if not _JOB_ID.fullmatch(which):
        fail(f"{which} is neither a run's folder nor a job's id")
    if kit is None:
        fail("a job's id needs --kit ADMIN_KIT")
    return True


def _has_kit(run_folder: Path) -> bool:
    from fedscan.federation import federation_file

    try:
        file = federation_file.read(run_folder)
    except federation_file.FederationFileError as error:
        fail(str(error))
    return file is not None and file.kit is not None


def _show(judged: Verdict, out: Path, as_json: bool) -> None:
    """The verdict; status 1 for a run that is not good, so that a script need not read it."""
    from fedscan.federation import verdict

    if as_json:
        print_json(judged.model_dump(mode="json"))
    else:
        for line in verdict.lines(judged):
            say(line, err=True)
        if (model := out / "model.safetensors").exists():
            typer.echo(str(model))
    if not judged.good:
        if judged.ended != "finished":
            typer.echo(f"Go on with: fedscan job resume {out}", err=True)
        raise typer.Exit(1)


def _show_local(model: Path, as_json: bool) -> None:
    from fedscan.federation import verdict

    judged = verdict.read(model.with_name(verdict.FILE))
    if judged is None:
        typer.echo(str(model))
    else:
        _show(judged, model.parent, as_json)


def _json_lines() -> Listener:
    def listen(progress: Progress) -> None:
        if progress.record is not None:
            typer.echo(json.dumps(progress.record.model_dump(mode="json", exclude_none=True)))
        else:
            say(progress.text, err=True)

    return listen
