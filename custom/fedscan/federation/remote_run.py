"""`--kit ADMIN_KIT`: a run in a provisioned federation: submitted, watched, resumed, fetched by its admin API."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvflare.fuel.flare_api.flare_api import Session

from fedscan.federation import (
    admin,
    federation_file,
    job_check,
    job_folder,
    job_form,
    job_results,
    records,
    remote_job,
    remote_results,
    run_note,
)
from fedscan.federation.admin import AdminError
from fedscan.federation.federation_file import FederationFile, FederationFileError
from fedscan.federation.findings import Finding, JobError
from fedscan.federation.local_run import Listener, Progress, RunError, is_fresh, locked
from fedscan.federation.remote_job import Kit
from fedscan.federation.remote_watch import Told, ended
from fedscan.federation.verdict import Verdict
from fedscan.plan import Plan, Submission

SITES_TIMEOUT_S = 60.0
"""How long a resumed job waits for sites that the job names and that are not connected."""
TRIES_WITHOUT_PROGRESS = 3


@dataclass(frozen=True)
class Submitted:
    """A job that the server has taken."""

    job_id: str
    run_id: str
    plan_digest: str


def check_job(job: Path) -> Plan:
    """The plan of a job folder that names its sites and is fit to be submitted. Raises JobError."""
    found = [finding for finding in job_check.check(job) if finding.level == "error"]
    # The model that a plan starts from lies on the server's shelf; here it need not be at hand.
    if found := [finding for finding in found if finding.where != "plan.init_sha256"]:
        raise JobError(found)
    if not _named(job):
        text = "names no site: make it with `fedscan job new ... --sites A,B,C` (under DP with --patients)"
        raise JobError([Finding("error", str(job), text)])
    return job_folder.read_plan(job)


def submit(job: Path, kit_folder: Path) -> Submitted:
    """Signs a job folder with the kit's key, as it is, and submits it. Raises JobError, RunError."""
    plan = check_job(job)
    with _our_errors():
        kit = Kit.of(kit_folder)
        with kit.session() as session:
            job_id = admin.submit(session, job)
    return Submitted(job_id, job_folder.read_submission(job).run_id, plan.digest)


def run(job: Path, kit_folder: Path, out: Path, listen: Listener, *, until_done: bool = False) -> Verdict:
    """Submits a job with a fresh submission, follows it to its end, and fetches what it came to.

    `until_done`: resumes it as often as it goes on. Raises JobError, RunError.
    """
    if not is_fresh(out):
        raise RunError(f"{out} exists and is not empty: choose another --out, or go on with `fedscan job resume {out}`")
    plan = check_job(job)
    with _our_errors():
        kit = Kit.of(kit_folder)
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        out.chmod(0o700)
        with locked(out):
            submission = Submission.new()
            job_folder.copy_for_run(job, out / "job", sites=_named(job), submission=submission)
            file = FederationFile(
                kit=kit.folder, user=kit.user, project=kit.project, run_id=submission.run_id, plan_digest=plan.digest
            )
            file.write(out)
            remote = RemoteRun(out, kit, file, plan, listen)
            remote.submit()
            return remote.to_the_end(until_done=until_done)


def resume(out: Path, listen: Listener, *, until_done: bool = False) -> Verdict:
    """Goes on with a run whose last job ended before its last round: a new job from the server's newest checkpoint.

    A run that is done is fetched again and nothing else. Raises JobError, RunError.
    """
    with locked(out), _our_errors():
        remote = RemoteRun.open(out, listen)
        return remote.resume() or remote.to_the_end(until_done=until_done)


def watch(out: Path, listen: Listener) -> Verdict | None:
    """Follows a run's newest job to its end, and fetches what it came to. Raises RunError.

    While another command works on RUN it only shows, and returns None.
    """
    with _our_errors(), contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(out))
        except RunError:
            remote = RemoteRun.open(out, listen)
            remote_job.follow(remote.kit, remote.newest_job(), Told(listen).listener())
            return None
        return RemoteRun.open(out, listen).follow()


def download(out: Path, listen: Listener) -> Verdict:
    """Fetches what a run's newest job came to, whatever NVFlare's status says. Raises RunError."""
    with locked(out), _our_errors():
        return RemoteRun.open(out, listen).fetch()


def watch_job(job_id: str, kit_folder: Path, listen: Listener) -> str:
    """Follows any job of this kit's person to its end. Returns NVFlare's status. Raises RunError."""
    with _our_errors():
        meta = remote_job.follow(Kit.of(kit_folder), job_id, Told(listen).listener())
    for site, word in remote_job.refused_at_deployment(meta).items():
        listen(Progress(f"{site} did not take the job: {word}"))
    return str(meta.get("status"))


def adopt(job_id: str, kit_folder: Path, out: Path, listen: Listener) -> Verdict:
    """Makes RUN of a job that another tool submitted (console, `nvflare job submit`), and fetches what it came to.

    Raises RunError.
    """
    if not is_fresh(out):
        raise RunError(f"{out} exists and is not empty: choose another --out")
    with _our_errors():
        kit = Kit.of(kit_folder)
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        out.chmod(0o700)
        with locked(out), kit.session() as session:
            meta = admin.meta(session, job_id)
            with remote_results.fetched(session, job_id, out) as fetch:
                job_folder.copy_for_run(fetch.job, out / "job", sites=fetch.named, submission=fetch.submission)
                FederationFile(
                    kit=kit.folder,
                    user=kit.user,
                    project=kit.project,
                    run_id=fetch.submission.run_id,
                    plan_digest=fetch.plan.digest,
                    jobs=(job_id,),
                ).write(out)
                return remote_results.collect(fetch, out, meta)


@dataclass
class RemoteRun:
    """A run's folder here, and its jobs there."""

    out: Path
    kit: Kit
    file: FederationFile
    plan: Plan
    listen: Listener

    @classmethod
    def open(cls, out: Path, listen: Listener) -> RemoteRun:
        """Raises RunError, JobError, AdminError."""
        file = federation_file.read(out)
        if file is None or file.kit is None:
            raise RunError(f"{out} belongs to no provisioned federation (it has no {federation_file.FILE} with a kit)")
        plan = job_folder.read_plan(out / "job")
        if plan.digest != file.plan_digest:
            raise RunError(f"the plan in {out / 'job'} is not the one this run began with: a changed plan is a new run")
        return cls(out, Kit.of(file.kit), file, plan, listen)

    def say(self, text: str) -> None:
        """A line for people."""
        self.listen(Progress(text))

    def submit(self) -> None:
        """Submits RUN/job as it is; RUN/federation.json knows it from then on."""
        with self.kit.session() as session:
            job_id = admin.submit(session, self.out / "job")
        self.file = self.file.with_job(job_id)
        self.file.write(self.out)
        self.say(f"submitted to {self.kit.project} as {self.kit.user}: job {job_id}")

    def to_the_end(self, *, until_done: bool) -> Verdict:
        """Follows the newest job, and resumes it while that brings rounds. Raises RunError, AdminError."""
        idle, done = 0, -1
        while True:
            judged = self.follow(again=len(self.file.jobs) > 1)
            if judged.ended == "finished" or not until_done:
                return judged
            idle = 0 if judged.rounds_done > done else idle + 1
            done = max(done, judged.rounds_done)
            if idle >= TRIES_WITHOUT_PROGRESS:
                raise RunError(f"{idle} more jobs brought no round: {'; '.join(judged.failings)}")
            self.say(f"the job ended ({judged.nvflare_status}): {'; '.join(judged.failings)}")
            if (already := self.resume()) is not None:
                return already

    def newest_job(self) -> str:
        """NVFlare's id. Raises RunError where nothing was submitted yet."""
        if not self.file.jobs:
            raise RunError(f"{self.out} has no job at the server yet: start it with `fedscan job resume {self.out}`")
        return self.file.jobs[-1]

    def follow(self, *, again: bool = False) -> Verdict:
        """The newest job to its end; then RUN holds what it came to. `again`: rounds that RUN knows were told."""
        told = Told(self.listen, self.out / job_results.ROUNDS, self.plan)
        if again:
            told.seen.records += records.read(self.out / job_results.ROUNDS)
        remote_job.follow(self.kit, self.newest_job(), told.listener(), told.seen, release=True)
        judged = self.fetch()
        told.rest(self.out / job_results.ROUNDS)
        return judged

    def fetch(self) -> Verdict:
        """RUN's model, records and verdict, by the newest job."""
        job_id = self.newest_job()
        with self.kit.session() as session:
            meta = admin.meta(session, job_id)
            with remote_results.fetched(session, job_id, self.out) as fetch:
                return remote_results.collect(fetch, self.out, meta)

    def resume(self) -> Verdict | None:
        """A new job of the same run and plan, from the newest checkpoint that the server can read.

        Returns the verdict of a run that is done already. Raises RunError where its last job still works.
        """
        start = 0
        with self.kit.session(remote_job.RECONNECT_S) as session:
            if self.file.jobs:
                meta = ended(session, self.file.jobs[-1], self.out, self.say)
                judged = self.fetch() if meta.get("start_time") else None  # else it never ran, and left nothing
                if judged is not None and judged.ended == "finished":
                    self.say(f"all {self.plan.rounds} rounds are done already")
                    return judged
                start = self._rounds_done(meta)
            self._wait_for_sites(session)
        self.say(f"{start} of {self.plan.rounds} rounds are done: going on")
        job_folder.renew(self.out / "job", Submission.new(run_id=self.file.run_id, start_round=start))
        self.submit()
        return None

    def _rounds_done(self, meta: dict[str, Any]) -> int:
        note = run_note.read(meta)
        if note is not None and note.run_id == self.file.run_id:
            return note.rounds_done
        # A line in rounds.jsonl means that its model is safe.
        return len(records.effective_rounds(self.out / job_results.ROUNDS))

    def _wait_for_sites(self, session: Session) -> None:
        deadline = time.monotonic() + SITES_TIMEOUT_S
        while missing := set(_named(self.out / "job")) - set(admin.connected(session)):
            if time.monotonic() > deadline:
                self.say(f"going on without {', '.join(sorted(missing))}: not connected")
                return
            time.sleep(1.0)


def _named(job: Path) -> list[str]:
    meta = job_form.parse(job / job_folder.META)
    return job_form.sites_of(meta if isinstance(meta, dict) else {}, job_folder.APP_SITES) or []


@contextlib.contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except (AdminError, FederationFileError) as error:
        raise RunError(str(error)) from error
