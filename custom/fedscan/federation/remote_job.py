"""One job of a provisioned federation, by its admin API: submitted, followed to its end through lost connections."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nvflare.fuel.flare_api.flare_api import Session

from fedscan.federation import admin, round_feed, run_note
from fedscan.federation.admin import AdminError, NotAllowedError, NotNowError, UnreachableError
from fedscan.federation.records import RoundRecord
from fedscan.plan import Plan

POLL_S = 1.0
RECONNECT_S = 1800.0
"""How long a follower waits for a server that is away."""
_RELEASE_S = 60.0
"""NVFlare waits up to 15 minutes for the last word of a site that is gone, when all rounds are done."""
_NOTE_S = 15.0
"""Our server notes how far the run came a moment after NVFlare says that the job ended."""


@dataclass(frozen=True)
class Kit:
    """A person's way into a federation."""

    folder: Path
    user: str
    project: str

    @classmethod
    def of(cls, folder: Path) -> Kit:
        """An admin kit. Raises AdminError."""
        folder = folder.resolve()
        return cls(folder, admin.user_of(folder), admin.project_of(folder))

    def session(self, timeout_s: float = 30.0) -> Any:
        """Context manager: a logged-in session. Raises UnreachableError."""
        return admin.session(self.folder, self.user, timeout_s=timeout_s)


@dataclass
class Seen:
    """What a follower knows of a run so far."""

    plan: Plan | None = None
    records: list[RoundRecord] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether the server's last word was that all rounds are done."""
        return bool(self.records) and self.records[-1].event == "finished"


@dataclass(frozen=True)
class Listener:
    """Who is told what: new records with all that were seen, and lines."""

    records: Callable[[Seen, list[RoundRecord]], None] = lambda seen, new: None
    say: Callable[[str], None] = lambda text: None


def follow(
    kit: Kit, job_id: str, listen: Listener, seen: Seen | None = None, *, release: bool = False
) -> dict[str, Any]:
    """Returns NVFlare's meta of the job when it has ended.

    `release`: end a job whose rounds are all done and which NVFlare keeps for a site that is gone. Raises AdminError,
    UnreachableError when the server stays away.
    """
    follower = _Follower(job_id, listen, seen or Seen(), release)
    while True:
        try:
            with kit.session(RECONNECT_S) as session:
                return follower.follow(session)
        except UnreachableError as error:
            if follower.lost_again():
                raise
            listen.say(f"{error}; trying again")


class _Follower:
    def __init__(self, job_id: str, listen: Listener, seen: Seen, release: bool) -> None:
        self.job_id, self.listen, self.seen, self.release = job_id, listen, seen, release
        self._tells_rounds = True
        self._last_word = ""
        self._done_since: float | None = None
        self._last_answer = time.monotonic()

    def lost_again(self) -> bool:
        """Whether no answer came for so long that waiting makes no sense any more."""
        return time.monotonic() - self._last_answer > RECONNECT_S

    def follow(self, session: Session) -> dict[str, Any]:
        while True:
            self.ask(session)
            meta = admin.meta(session, self.job_id)
            self._last_answer = time.monotonic()
            status = str(meta.get("status", ""))
            if status.startswith("FINISHED"):
                return with_note(session, self.job_id, meta)
            self._tell(status, meta)
            self._release(session, status)
            time.sleep(POLL_S)

    def ask(self, session: Session) -> None:
        """New lines of rounds.jsonl, where the job runs."""
        if not self._tells_rounds:
            return
        try:
            while self._ask_once(session):
                pass
        except NotNowError:
            return
        except NotAllowedError:
            self._tells_rounds = False
            self.listen.say("the server's policy does not tell the rounds of this job: only its status is shown")

    def _ask_once(self, session: Session) -> bool:
        """Whether there may be more."""
        try:
            raw = admin.ask_job(session, self.job_id, round_feed.TOPIC, {"after": len(self.seen.records)})
        except (UnreachableError, NotNowError, NotAllowedError):
            raise
        except AdminError:  # the job is loading, or it has ended a moment ago
            return False
        try:
            feed = round_feed.read(raw)
        except round_feed.FeedError as error:
            raise AdminError(str(error)) from None
        self.seen.plan = feed.plan or self.seen.plan
        new = list(feed.records)
        self.seen.records += new
        if new:
            self.listen.records(self.seen, new)
        return len(new) == round_feed.MAX_RECORDS

    def _tell(self, status: str, meta: Mapping[str, Any]) -> None:
        history = meta.get("schedule_history") or [""]
        why = str(history[-1]).partition(": ")[2] if status == "SUBMITTED" else ""
        word = f"{status.lower()}{f' ({why})' if why else ''}"
        if word != self._last_word:
            self._last_word = word
            self.listen.say(f"job {word}")

    def _release(self, session: Session, status: str) -> None:
        if not (self.release and self.seen.finished and status == "RUNNING"):
            return
        self._done_since = self._done_since or time.monotonic()
        if time.monotonic() - self._done_since > _RELEASE_S:
            self.listen.say("all rounds are done; NVFlare waits for a site that is gone: ending the job")
            admin.abort(session, self.job_id)
            self._done_since = time.monotonic()


def with_note(session: Session, job_id: str, meta: dict[str, Any]) -> dict[str, Any]:
    """The meta with our server's note, if it comes."""
    deadline = time.monotonic() + _NOTE_S
    while run_note.read(meta) is None and meta.get("start_time") and time.monotonic() < deadline:
        time.sleep(0.5)
        meta = admin.meta(session, job_id)
    return meta


def refused_at_deployment(meta: Mapping[str, Any]) -> dict[str, str]:
    """Sites that did not take the job, and their word, by NVFlare's meta."""
    found = {}
    for line in meta.get("job_deploy_detail") or []:
        site, sign, word = str(line).partition(": ")
        if sign and site != "server" and word != "OK" and " " not in site:
            found[site] = word.removeprefix("NVFLARE_ERROR: ").strip()
    return found
