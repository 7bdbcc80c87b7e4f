"""`fedscan job run` and `job resume`: a provisioned federation on loopback inside RUN, from first round to last."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from filelock import FileLock, Timeout
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from fedscan.federation import (
    admin,
    federation_file,
    job_check,
    job_folder,
    kits,
    processes,
    records,
    run_lines,
    run_sites,
)
from fedscan.federation.federation_file import FederationFile
from fedscan.federation.findings import JobError
from fedscan.federation.places import ServerPlaces, SitePlaces
from fedscan.federation.records import RoundRecord
from fedscan.plan import Plan, Submission
from fedscan.training import checkpoints

RUN_FILE = "run.json"
END_GRACE_S = 20.0
_SILENT_HINT = "; why a site gave none stands in rounds.jsonl or, under a policy, in refusals.jsonl of its state folder"
_REFUSED_HINT = "; a site that refused it noted why in refusals.jsonl of its state folder (see `fedscan policy check`)"
_BEFORE_THE_START = {".lock", ".job.partial", "job", "shelf", federation_file.FILE, f"{federation_file.FILE}.partial"}
_BEFORE_THE_START |= {f"{RUN_FILE}.partial"}


class RunError(RuntimeError):
    """The run did not finish; the text says why and what to do."""


def _site_name(name: str) -> str:
    if job_folder.site_name_findings([name]):
        raise ValueError("no site name")
    return name


SiteName = Annotated[str, AfterValidator(_site_name)]
"""Becomes the name of a folder."""


class RunFile(BaseModel):
    """RUN/run.json: what this run is made of. Site paths are this machine's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    plan_digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    site_files: dict[SiteName, Path] = Field(default_factory=dict, description="sites under their own site.json")
    stores: dict[SiteName, Path] = Field(default_factory=dict, description="sites without policy and ledger")
    threads: int = Field(ge=1, le=1024, description="of each site without policy; others have limits.cores")
    stamps: tuple[str, ...] = Field(default=(), description="what every output of this run must say of it")
    reproducible_noise_seed: int | None = None

    @model_validator(mode="after")
    def _sites(self) -> Self:
        if not self.sites or set(self.stores) & set(self.site_files):
            raise ValueError("no sites, or one site in two ways")
        return self

    @property
    def sites(self) -> list[str]:
        """All site names, sorted."""
        return sorted({*self.stores, *self.site_files})


@dataclass(frozen=True)
class Progress:
    """One thing that happened; `record` for lines of rounds.jsonl."""

    text: str
    record: RoundRecord | None = None


Listener = Callable[[Progress], None]


def run(
    job: Path,
    sites: Mapping[str, Path],
    out: Path,
    init: Path | None = None,
    threads: int = 1,
    listen: Listener = lambda _: None,
    *,
    no_policy: bool = False,
    reproducible_noise_seed: int | None = None,
) -> Path:
    """Runs a job on this machine with a server and a process for each site. Returns RUN/model.safetensors.

    `sites`: name to SITE.json (or the kit that holds it), under whose policy and ledger the site then runs; with
    `no_policy` a slice store will do, and every output is stamped so. `reproducible_noise_seed`: for demonstrations;
    a site's policy must allow it. Raises RunError; JobError when the job or a site is not fit to run.
    """
    if not is_fresh(out):
        raise RunError(f"{out} exists and is not empty: choose another --out, or go on with `fedscan job resume {out}`")
    sources = run_sites.read(sites)
    findings = [*run_sites.findings(sources, no_policy), *job_check.check(job, sources.stores, init)]
    if errors := [f for f in findings if f.level == "error"]:
        raise JobError(errors)
    for finding in findings:
        if finding.level == "warning":
            listen(Progress(f"warning: {finding.where}: {finding.text}"))
    plan = job_folder.read_plan(job)
    if errors := run_sites.private_findings(sources, plan):
        raise JobError(errors)
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    out.chmod(0o700)  # it may have been there, empty and open to all
    with locked(out):
        submission = Submission.new()
        job_folder.copy_for_run(job, out / "job", sites=sorted(sites), submission=submission)
        _shelve(out, plan, init or job_folder.remembered_init(job))
        run_file = RunFile(
            run_id=submission.run_id,
            plan_digest=plan.digest,
            site_files=sources.site_files,
            stores=sources.bare,
            threads=threads,
            stamps=run_sites.stamps(sources, reproducible_noise_seed),
            reproducible_noise_seed=reproducible_noise_seed,
        )
        FederationFile(run_id=submission.run_id, plan_digest=plan.digest).write(out)
        job_folder.write_json(out / RUN_FILE, run_file.model_dump(mode="json"))
        return _attempt(out, run_file, plan, listen)


def resume(out: Path, listen: Listener = lambda _: None) -> Path:
    """Goes on with a run from its newest checkpoint, in the same RUN folder. Returns RUN/model.safetensors."""
    try:
        run_file = RunFile.model_validate_json((out / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{out} holds no run that can go on ({RUN_FILE}: {type(error).__name__}): start it with `fedscan job run`"
        ) from None
    with locked(out):
        if left := processes.stop_all(out):
            listen(Progress(f"ended {left} processes that an earlier command left"))
        plan = job_folder.read_plan(out / "job")
        if plan.digest != run_file.plan_digest:
            raise RunError(f"the plan in {out / 'job'} is not the one this run began with: a changed plan is a new run")
        state = checkpoints.newest(out / "checkpoints", plan, run_file.run_id)
        done = state.rounds_done if state else 0
        model = out / "model.safetensors"
        if done >= plan.rounds and model.exists():
            listen(Progress(f"all {plan.rounds} rounds are done already"))
            return model
        listen(Progress(f"{done} of {plan.rounds} rounds are done: going on"))
        submission = Submission.new(run_id=run_file.run_id, start_round=done)
        job_folder.renew(out / "job", submission)
        return _attempt(out, run_file, plan, listen)


def is_fresh(out: Path) -> bool:
    """Nothing is there, or only what a command that was killed before it began has left."""
    if not out.exists():
        return True
    if not out.is_dir() or not {entry.name for entry in out.iterdir()} <= _BEFORE_THE_START:
        return False
    try:
        file = federation_file.read(out)
    except federation_file.FederationFileError:
        return False
    return file is None or not file.jobs


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    old_umask = os.umask(0o077)
    try:
        with FileLock(out / ".lock", timeout=0, mode=0o600):
            yield
    except Timeout:
        raise RunError(f"another fedscan command is working on {out}: wait for it, or stop it") from None
    finally:
        os.umask(old_umask)


def _shelve(out: Path, plan: Plan, init: Path | None) -> None:
    shelf = out / "shelf"
    shelf.mkdir(mode=0o700, exist_ok=True)
    if plan.init_sha256 is not None and init is not None:
        partial = shelf / ".partial"
        shutil.copyfile(init, partial)
        os.replace(partial, shelf / f"{plan.init_sha256}.safetensors")


def _attempt(out: Path, run_file: RunFile, plan: Plan, listen: Listener) -> Path:
    folder = _next_attempt(out)
    listen(Progress(f"provisioning a federation of 1 server and {len(run_file.sites)} sites"))
    for stamp in run_file.stamps:
        listen(Progress(f"warning: {stamp}"))
    absolute = out.resolve()
    server = ServerPlaces(run_folder=str(absolute), shelf=absolute / "shelf", stamps=run_file.stamps)
    try:
        federation = kits.provision(folder.resolve(), _places(absolute, run_file), server)
    except kits.ProvisionError as error:
        raise RunError(_advice(out, str(error))) from error
    try:
        _start_and_watch(out, federation, plan, listen)
    finally:
        processes.stop_all(out)
    return out / "model.safetensors"


def _places(out: Path, run_file: RunFile) -> dict[str, SitePlaces]:
    places = {
        site: SitePlaces(site_file=path, reproducible_noise_seed=run_file.reproducible_noise_seed)
        for site, path in run_file.site_files.items()
    }
    for site, store in run_file.stores.items():
        state = out / "sites" / site
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        places[site] = SitePlaces(no_policy=True, store=store, state=state, threads=run_file.threads)
    return dict(sorted(places.items()))


def _next_attempt(out: Path) -> Path:
    names = [p.name.removeprefix("attempt-") for p in (out / "federation").glob("attempt-*")]
    numbers = [int(name) for name in names if name.isdecimal()]
    return out / "federation" / f"attempt-{max(numbers, default=0) + 1:02d}"


def _start_and_watch(out: Path, federation: kits.Federation, plan: Plan, listen: Listener) -> None:
    already = sum(1 for _ in records.read(out / "rounds.jsonl"))
    listen(Progress("starting the server and the sites"))
    parents = {name: processes.start(federation, name) for name in (kits.SERVER, *federation.sites)}
    check = functools.partial(_all_alive, parents, federation)
    try:
        with admin.session(federation.kit(kits.LEAD), kits.LEAD, check) as session:
            admin.wait_for_sites(session, federation.sites, check)
            job_id = admin.submit(session, out / "job")
            listen(Progress("job submitted and signed; the sites load their models"))
            _watch(out, already, plan, listen, functools.partial(admin.status, session, job_id), check)
    except admin.AdminError as error:
        raise RunError(_advice(out, str(error))) from error


def _all_alive(parents: Mapping[str, subprocess.Popen[bytes]], federation: kits.Federation) -> None:
    for name, parent in parents.items():
        if parent.poll() is not None:
            log = federation.kit(name) / "console.log"
            raise admin.AdminError(f"the process of {name} ended with status {parent.returncode} (its words: {log})")


def _watch(
    out: Path, already: int, plan: Plan, listen: Listener, status: Callable[[], str], check: Callable[[], None]
) -> None:
    seen = already
    next_status = 0.0
    while True:
        ended = ""
        if time.monotonic() >= next_status:
            next_status = time.monotonic() + 2.0
            ended = status()
        new = list(records.read(out / "rounds.jsonl"))[seen:]
        seen += len(new)
        for record in new:
            if record.event != "asked":
                listen(Progress(run_lines.describe(record, plan), record))
        if any(record.event == "finished" for record in new):
            processes.wait_for_jobs(out, END_GRACE_S)
            return
        if stopped := [record for record in new if record.event == "stopped"]:
            raise RunError(_advice(out, f"the run stopped: {stopped[-1].reason}{_SILENT_HINT}"))
        if ended.startswith("FINISHED"):
            raise RunError(_advice(out, f"NVFlare ended the job as {ended}{_REFUSED_HINT}"))
        check()
        time.sleep(0.2)


def _advice(out: Path, what: str) -> str:
    return (
        f"{what}. Nothing that was checkpointed is lost: go on with `fedscan job resume {out}`; logs: {out}/federation"
    )
