"""The demo's federation at work: its processes, one job as a lead submits it, and its result downloaded."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from fedscan.cli.demo_steps import MODEL, Demo, DemoError

if TYPE_CHECKING:
    from nvflare.fuel.flare_api.flare_api import Session

    from fedscan.federation.consortium import Consortium
    from fedscan.federation.records import RoundRecord

JOB_LIMIT_S = 1800.0


@contextlib.contextmanager
def running(made: Consortium) -> Iterator[Callable[[], None]]:
    """The server and all sites, each from its own kit by its own start script; ended for sure at the end, also on a
    signal. Yields a check, which raises DemoError once one of them has ended by itself."""
    from fedscan.federation import processes

    processes.stop_all(made.folder)  # of a demo that was killed
    names = [made.server, *made.sites]
    with _ended_by_signals():
        try:
            parents = {name: processes.start_by_script(made.kit(name)) for name in names}
            yield functools.partial(_all_alive, parents, made)
        finally:
            processes.stop_all(made.folder)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal end the block as ctrl-C does, so that its processes are ended too."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _all_alive(parents: Mapping[str, subprocess.Popen[bytes]], made: Consortium) -> None:
    for name, parent in parents.items():
        if parent.poll() is not None:
            log = made.kit(name) / "console.log"
            raise DemoError(f"the process of {name} ended with status {parent.returncode} (its words: {log})")


def train(demo: Demo, made: Consortium, job: Path, out: Path) -> int:
    """Submits the job as the project's lead, tells its rounds, and downloads what it left into `out`.

    Returns the number of rounds. Raises DemoError, AdminError.
    """
    from fedscan.federation import admin, job_folder
    from fedscan.plan import Submission

    plan = job_folder.read_plan(job)
    lead = made.names("admin", "lead")[0]
    with running(made) as check, admin.session(made.kit(lead), lead, check) as session:
        demo.progress.update(0.1, f"{lead} is logged in; the sites connect")
        admin.wait_for_sites(session, made.sites, check)
        job_folder.renew(job, Submission.new())
        job_id = admin.submit(session, job)
        demo.progress.update(0.15, "job submitted and signed; the sites load their models")
        _watch(demo, session, job_id, plan.rounds, check)
        _fetch(session, job_id, made.kit(lead) / "transfer", out)
    return plan.rounds


def _watch(demo: Demo, session: Session, job_id: str, rounds: int, check: Callable[[], None]) -> None:
    """Returns when the job has ended."""
    from fedscan.federation import admin, round_feed

    deadline = time.monotonic() + JOB_LIMIT_S
    seen = 0
    while time.monotonic() < deadline:
        check()
        with contextlib.suppress(admin.AdminError):  # not yet running, or ended already
            feed = round_feed.read(admin.ask_job(session, job_id, round_feed.TOPIC, {"after": seen}))
            seen = feed.next
            for record in feed.records:
                _tell(demo, record, rounds)
        if admin.status(session, job_id).startswith("FINISHED"):
            return
        time.sleep(0.5)
    raise DemoError(f"the job did not end in {JOB_LIMIT_S:.0f} s")


def _tell(demo: Demo, record: RoundRecord, rounds: int) -> None:
    if record.event == "round" and record.round is not None:
        answered = sum(entry.answered for entry in record.sites.values())
        share = 0.2 + 0.7 * (record.round + 1) / rounds
        demo.progress.update(share, f"round {record.round + 1}/{rounds}: {answered} of {len(record.asked)} sites")


def _fetch(session: Session, job_id: str, transfer: Path, out: Path) -> None:
    """What our server left of the run: `out` is there whole, with a model, or not at all."""
    from fedscan.federation import admin
    from fedscan.federation.server_job import RESULTS

    downloaded = admin.download(session, job_id, transfer)
    result = downloaded / "workspace" / RESULTS
    if not (result / MODEL).is_file():
        ended = admin.status(session, job_id)
        raise DemoError(f"the job ended as {ended} without a model: what it left lies in {downloaded}")
    shutil.rmtree(out, ignore_errors=True)
    os.replace(result, out)
    shutil.rmtree(downloaded)
