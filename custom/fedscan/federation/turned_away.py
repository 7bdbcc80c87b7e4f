"""At the server, answers that belong to no task of this round: sent again, late, of another site's task or job.

NVFlare drops them with a word in its log; they never reach the controller. Here they become a part of the round's
record, and of the server's chained log.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from nvflare.apis.impl.wf_comm_server import WFCommServer
from nvflare.fuel.utils.log_utils import get_obj_logger
from nvflare.private.fed.server.server_runner import ServerRunner

from fedscan.federation.audit_log import AuditLog
from fedscan.federation.records import RoundRecord, SiteEntry
from fedscan.federation.server_round import NO_ANSWER

AGAIN = "sent again: its answer to this task is here already"
NO_TASK = "an answer to no task that is open: late, or an old one"
OTHER_JOB = "an answer that belongs to another job"
OTHER_SITE = "an answer to another site's task"
_WORDS = {
    "result is already received": AGAIN,
    "task is already finished": NO_TASK,
    "not the same job id": OTHER_JOB,
    "submission client mismatch": OTHER_SITE,
}
"""NVFlare's, and ours."""
_MOST = 8
"""Different ones of a site in one round."""
Tell = Callable[[str, str], None]
_process = ServerRunner.process_submission
_at_work = threading.local()


class TurnedAway:
    """What was turned away since it was last asked; from all threads that receive."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, list[str]] = {}

    def add(self, site: str, reason: str) -> None:
        """Each reason once."""
        with self._lock:
            known = self._found.setdefault(site, [])
            if reason not in known and len(known) < _MOST:
                known.append(reason)

    def into(self, record: RoundRecord) -> RoundRecord:
        """The record with all of it, which is then forgotten here."""
        with self._lock:
            found, self._found = self._found, {}
        sites = dict(record.sites)
        for site, reasons in found.items():
            entry = sites.get(site, SiteEntry(answered=False, refused="site was not asked"))
            sites[site] = entry.model_copy(update={"also_refused": tuple(reasons)})
        return record.model_copy(update={"sites": sites})


def listen(tell: Tell) -> None:
    """From now on in this job process of a server: `tell` gets the site, as its login says, and the reason."""
    ServerRunner.process_submission = _processed
    for kind in (ServerRunner, WFCommServer):
        logger = get_obj_logger(kind)
        logger.addHandler(_Listener(tell))
        if not logger.isEnabledFor(logging.INFO):
            logger.setLevel(logging.INFO)


def _processed(self: ServerRunner, client: Any, *others: Any) -> Any:
    _at_work.site = str(client.name)
    try:
        return _process(self, client, *others)
    finally:
        _at_work.site = None


class _Listener(logging.Handler):
    def __init__(self, tell: Tell) -> None:
        super().__init__(logging.INFO)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        site = getattr(_at_work, "site", None)
        for words, reason in _WORDS.items():
            if site is not None and words in record.getMessage():
                self._tell(site, reason)


def note(log: AuditLog, record: RoundRecord, job: str) -> None:
    """One record for each answer of this try that was not taken, silence is none, or for the end of a run that the
    server did not go on with. Raises OSError and AuditError."""
    if record.event == "stopped":
        log.append("refused", f"run {record.run_id} stopped: {record.reason}", job=job)
    for site, entry in sorted(record.sites.items()):
        refused = () if entry.refused in (None, NO_ANSWER) else (entry.refused,)
        for reason in (*refused, *(entry.also_refused or ())):
            log.append("refused", f"answer, round {record.round} of run {record.run_id}: {reason}", who=site, job=job)
