"""What a watcher of a run in a federation is told, and whether a job that is called RUNNING still runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nvflare.fuel.flare_api.flare_api import Session

from fedscan.federation import admin, records, remote_job, round_feed, run_lines
from fedscan.federation.local_run import Listener, Progress, RunError
from fedscan.federation.records import RoundRecord
from fedscan.federation.remote_job import Seen
from fedscan.plan import Plan

LOST_TIMEOUT_S = 300.0
"""How long resume waits for NVFlare to end a job whose process is gone."""


class Told:
    """Turns what a follower sees into lines and, in RUN, into a copy of rounds.jsonl that grows with the run."""

    def __init__(self, listen: Listener, copy: Path | None = None, plan: Plan | None = None) -> None:
        self.seen = Seen(plan)
        self._listen, self._copy = listen, copy

    def listener(self) -> remote_job.Listener:
        """For `remote_job.follow`."""
        return remote_job.Listener(records=self._records, say=lambda text: self._listen(Progress(text)))

    def rest(self, fetched: Path) -> None:
        """Tells what came between the last answer and the end of the job; `fetched` is the run's whole rounds.jsonl."""
        new = list(records.read(fetched))[len(self.seen.records) :]
        self.seen.records += new
        self._tell(self.seen, new)

    def _records(self, seen: Seen, new: list[RoundRecord]) -> None:
        if self._copy is not None:
            if len(seen.records) == len(new):
                self._copy.unlink(missing_ok=True)
            for record in new:
                records.append(self._copy, record)
        self._tell(seen, new)

    def _tell(self, seen: Seen, new: list[RoundRecord]) -> None:
        for record in new:
            if seen.plan is not None:
                until_now = seen.records[: seen.records.index(record) + 1]
                self._listen(Progress(_line(record, until_now, seen.plan), record))


def _line(record: RoundRecord, until_now: list[RoundRecord], plan: Plan) -> str:
    text = run_lines.describe(record, plan)
    return f"{text}; {run_lines.outlook(until_now, plan)}".rstrip("; ") if record.event == "round" else text


def ended(session: Session, job_id: str, out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The job's meta once it has ended; a server that lost it says so when it has started again. Raises RunError."""
    deadline = time.monotonic() + LOST_TIMEOUT_S
    told = False
    while True:
        meta = admin.meta(session, job_id)
        status = str(meta.get("status", ""))
        if status.startswith("FINISHED"):
            return remote_job.with_note(session, job_id, meta)
        if status != "RUNNING" or _answers(session, job_id):
            raise RunError(f"job {job_id} is at work ({status.lower()}): follow it with `fedscan job watch {out}`")
        if time.monotonic() > deadline:
            raise RunError(
                f"NVFlare calls job {job_id} RUNNING, and nothing answers for it: the server's operator starts the "
                "server again, which ends such jobs"
            )
        if not told:
            say(f"job {job_id} does not answer, and NVFlare calls it RUNNING: waiting for the server to end it")
        told = True
        time.sleep(2.0)


def _answers(session: Session, job_id: str) -> bool:
    try:
        admin.ask_job(session, job_id, round_feed.TOPIC, {"after": 0})
    except admin.NotNowError:
        return False
    except admin.UnreachableError:
        raise
    except admin.AdminError:  # it answers, if only that it is loading
        return True
    return True
