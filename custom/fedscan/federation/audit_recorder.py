"""In the parent process of server and site: NVFlare's commands, logins, jobs and refusals go into the chained log."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
import time
from pathlib import Path
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.fuel.sec.audit import EXCLUDED_ACTIONS, Auditor
from nvflare.fuel.sec.authz import AuthorizationService

from fedscan.federation import no_payload_files, refusals, refused_jobs
from fedscan.federation.audit_log import AuditError, AuditLog, What
from fedscan.federation.audit_tls import note_refused_handshakes
from fedscan.federation.hourly import Hour
from fedscan.federation.places import PlacesError
from fedscan.federation.server_job import ServerJob
from fedscan.federation.site_folder import notes_of

REPEATED_S = 600.0
"""The same command of the same person within this time is one record: `job watch` asks three times a second."""
LOGGERS = frozenset(
    {
        "AppDeployer",
        "AuthzFilter",
        "ClientManager",
        "FederatedServer",
        "FedscanSecondStart",
        "JobRunner",
        "LoginModule",
        "SessionManager",
        "SiteSecurity",
        "conn_manager",
        "websockets.server",
    }
)
"""NVFlare's own words on whom it turned away stand nowhere else; taken from WARNING on."""
_MOST_KNOWN = 10_000
_JOB_EVENTS = {
    EventType.JOB_DEPLOYED: "deployed",
    EventType.JOB_STARTED: "started",
    EventType.JOB_ABORTED: "aborted",
    EventType.JOB_COMPLETED: "ended",
    EventType.BEFORE_JOB_LAUNCH: "launched",
}


class AuditRecorder(FLComponent):  # type: ignore[misc]
    """Among the components of KIT/local/resources.json, of the server and of each site. Takes no arguments."""

    def __init__(self) -> None:
        super().__init__()
        no_payload_files.refuse()
        self._log: AuditLog | None = None
        self._site: Path | None = None
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, str], float] = {}
        self._hours: dict[tuple[str, str], Hour] = {}
        self._rounds: dict[str, Path] = {}

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Starts with the parent process: a job process has its own places that note."""
        if event_type == EventType.SYSTEM_BOOTSTRAP:
            kit = Path(fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_site_config_dir()).parent
            notes = notes_of(kit)
            self._site = notes if notes != kit else None
            self._start(notes)
        elif event_type in _JOB_EVENTS:
            self._job(_JOB_EVENTS[event_type], fl_ctx)
        elif event_type == EventType.CLIENT_REGISTER_PROCESSED:
            # NVFlare says so of one that it turned away, too: its ClientManager's word on that is a record of its own.
            peer, kind = fl_ctx.get_peer_context(), fl_ctx.get_prop(FLContextKey.CLIENT_TYPE)
            name = peer.get_identity_name() if isinstance(peer, FLContext) else ""
            self.record("register", f"a registration as {kind} was answered", who=str(name))

    def record(self, what: What, text: str, who: str = "", job: str = "") -> None:
        """One record. What cannot be written is said in NVFlare's log: the federation goes on."""
        if self._log is None:
            return
        try:
            self._log.append(what, text, who=who, job=job)
        except (OSError, AuditError) as error:
            self.logger.error("the audit log is not written: %s", error)

    def _turned_away(self, why: str, job: str) -> None:
        """A site's own people read refusals.jsonl, too."""
        if self._site is None or refused_jobs.is_ours(why):
            self.record("refused", f"job: {why}", job=job)
            return
        try:
            refusals.note(self._site, "deploy", [f"job: {why}"], job=job)
        except OSError as error:
            self.logger.error("a refused job cannot be noted: %s", error)

    def _start(self, folder: Path) -> None:
        if self._log is not None:
            return
        self._log = AuditLog(folder)
        self.record("start", "the parent process started")
        _listen(self)

    def _job(self, happened: str, fl_ctx: FLContext) -> None:
        data = fl_ctx.get_prop(FLContextKey.EVENT_DATA)
        known = data.get("job_id") if isinstance(data, dict) else None
        meta = fl_ctx.get_prop(FLContextKey.JOB_META) or {}
        job_id = str(known or fl_ctx.get_prop(FLContextKey.CURRENT_JOB_ID) or meta.get("job_id") or "")
        self.record("job", happened, job=job_id)
        if happened == "started":  # at the server alone; the job's folder is gone when it has ended
            with contextlib.suppress(PlacesError, OSError):
                self._rounds[job_id] = ServerJob.of_job(fl_ctx.get_engine().get_workspace(), job_id, {}).rounds_file
        elif happened == "ended":
            self._seal_rounds(job_id)

    def _seal_rounds(self, job_id: str) -> None:
        """At the server: how many lines RUN/rounds.jsonl has, and their SHA-256."""
        rounds = self._rounds.pop(job_id, None)
        if rounds is None:
            return
        with contextlib.suppress(OSError):
            content = rounds.read_bytes()
            count = content.count(b"\n")
            self.record("round", f"{count} lines of rounds.jsonl: {hashlib.sha256(content).hexdigest()}", job=job_id)

    def once(self, what: What, text: str, who: str = "") -> None:
        """A record, unless there was the same a moment ago."""
        now = time.monotonic()
        with self._lock:
            last = self._seen.get((who, text))
            self._seen[who, text] = now
            if len(self._seen) > _MOST_KNOWN:
                self._seen.clear()
            if len(self._hours) > _MOST_KNOWN:
                self._hours.clear()
            if last is not None and now - last <= REPEATED_S:
                return
            texts = [*self._hours.setdefault((what, who), Hour(now)).texts(text, now)]
        for one in texts:
            self.record(what, one, who=who)


def _listen(recorder: AuditRecorder) -> None:
    """At NVFlare's auditor, its authorisation, the loggers of what turns people away, and TLS."""
    add_event, authorize = Auditor.add_event, AuthorizationService.authorize

    def noted_event(self: Auditor, user: str, action: str, ref: str = "", msg: str = "") -> Any:
        if action not in EXCLUDED_ACTIONS:
            recorder.once("command", f"{action} {msg}".strip(), who=str(user))
        return add_event(self, user, action, ref, msg)

    def noted_decision(ctx: Any) -> Any:
        allowed, reason = authorize(ctx)
        if not allowed:
            recorder.once("refused", f"not authorized: {ctx.right}", who=str(ctx.user.name))
        return allowed, reason

    Auditor.add_event = noted_event
    AuthorizationService.authorize = staticmethod(noted_decision)
    logging.getLogger().addHandler(_Handler(recorder))
    refused_jobs.watch(recorder._turned_away)
    note_refused_handshakes(lambda text: recorder.once("refused", text))


class _Handler(logging.Handler):
    def __init__(self, recorder: AuditRecorder) -> None:
        super().__init__(logging.WARNING)
        self._recorder = recorder

    def emit(self, record: logging.LogRecord) -> None:
        if record.name in LOGGERS or record.name.rpartition(".")[2] in LOGGERS:
            self._recorder.once("refused", f"{record.name.rpartition('.')[2]}: {record.getMessage()}")
