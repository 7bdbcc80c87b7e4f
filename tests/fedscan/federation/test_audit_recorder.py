"""What NVFlare does and says, as records of the chained log; in real processes in test_bytes_counted.py."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext

from fedscan.federation import audit_recorder, hourly
from fedscan.federation.audit_log import AuditLog
from fedscan.federation.audit_recorder import AuditRecorder, _Handler
from fedscan.federation.site_folder import notes_of

LISTENING = """
import sys
from pathlib import Path
from nvflare.fuel.sec.audit import Auditor
from nvflare.fuel.sec.authz import AuthorizationService, Authorizer, AuthzContext, Person
from fedscan.federation.audit_recorder import AuditRecorder
folder = Path(sys.argv[1])
recorder = AuditRecorder()
recorder._start(folder)
recorder._start(folder)
auditor = Auditor(str(folder / "audit.log"))
for action in ("submit_job job", "get_job_meta 7", "get_job_meta 7", "_check_session"):
    auditor.add_event("lead@coord.org", action)
class Nobody(Authorizer):
    def __init__(self): pass
    def authorize(self, ctx): return False, ""
AuthorizationService.the_authorizer = Nobody()
member = Person("member@coord.org", "coord", "member")
assert AuthorizationService.authorize(AuthzContext("submit_job", member, member)) == (False, "")
assert "submit_job job" in (folder / "audit.log").read_text()
"""


@pytest.fixture
def recorder(tmp_path: Path) -> AuditRecorder:
    one = AuditRecorder()
    one._log = AuditLog(tmp_path)
    return one


def told(folder: Path) -> list[tuple[str, str, str, str]]:
    found = AuditLog(folder).verify()
    assert found.ok, found.faults
    return [(event.what, event.who, event.text, event.job) for event in found.events]


def test_commands_and_who_was_not_allowed_one(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", LISTENING, str(tmp_path)], check=True, timeout=240)
    assert told(tmp_path) == [
        ("start", "", "the parent process started", ""),
        ("command", "lead@coord.org", "submit_job job", ""),
        ("command", "lead@coord.org", "get_job_meta 7", ""),
        ("refused", "member@coord.org", "not authorized: submit_job", ""),
    ]


def test_jobs_by_their_id(recorder: AuditRecorder, tmp_path: Path) -> None:
    context = FLContext()
    context.set_prop(FLContextKey.EVENT_DATA, {"job_id": "j-1"}, private=True, sticky=False)
    recorder.handle_event(EventType.JOB_DEPLOYED, context)
    launched = FLContext()
    launched.set_prop(FLContextKey.JOB_META, {"job_id": "j-2"}, private=True, sticky=False)
    recorder.handle_event(EventType.BEFORE_JOB_LAUNCH, launched)
    recorder.handle_event(EventType.JOB_COMPLETED, context)
    assert told(tmp_path) == [
        ("job", "", "deployed", "j-1"),
        ("job", "", "launched", "j-2"),
        ("job", "", "ended", "j-1"),
    ]


def test_the_rounds_of_a_run_are_sealed_at_its_end(recorder: AuditRecorder, tmp_path: Path) -> None:
    (tmp_path / "rounds.jsonl").write_text("{}\n{}\n")
    recorder._rounds["j-1"] = tmp_path / "rounds.jsonl"
    recorder._seal_rounds("j-1")
    recorder._seal_rounds("j-2")
    ((what, _, text, job),) = told(tmp_path)
    assert (what, job) == ("round", "j-1")
    assert text.startswith("2 lines of rounds.jsonl: ")


def test_nvflares_own_word_on_whom_it_turned_away(recorder: AuditRecorder, tmp_path: Path) -> None:
    handler = _Handler(recorder)
    for name, level in (("x.ClientManager", "WARNING"), ("x.ClientManager", "WARNING"), ("x.Other", "ERROR")):
        handler.emit(logging.makeLogRecord({"name": name, "levelname": level, "msg": "Reject %s", "args": ("hosp-x",)}))
    assert told(tmp_path) == [("refused", "", "ClientManager: Reject hosp-x", "")]


def test_a_log_that_cannot_be_written_does_not_stop_the_federation(
    recorder: AuditRecorder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.record("start", "one")
    (tmp_path / "audit" / "audit.jsonl").write_bytes(b"")
    recorder.record("start", "two")
    assert "not continued" in caplog.text


def test_a_servers_notes_lie_in_its_kit(tmp_path: Path) -> None:
    (tmp_path / "startup").mkdir()
    assert notes_of(tmp_path) == tmp_path / "local"
    (tmp_path / "startup" / "fed_server.json").write_text("{}")
    assert notes_of(tmp_path) == tmp_path


def test_nobody_fills_the_log_with_words_of_his_own(
    recorder: AuditRecorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each connection with a certificate and another strange name is another word of NVFlare's on it."""
    monkeypatch.setattr(hourly, "MOST", 5)
    now = 1000.0
    monkeypatch.setattr(audit_recorder.time, "monotonic", lambda: now)
    handler = _Handler(recorder)

    def refused(word: str) -> None:
        handler.emit(logging.makeLogRecord({"name": "x.conn_manager", "levelname": "ERROR", "msg": word}))

    for k in range(50):
        refused(f"Invalid endpoint name 'x{k}'")
    recorder.once("refused", "not authorized: submit_job", who="member@coord.org")
    texts = [text for _, _, text, _ in told(tmp_path)]
    assert len(texts) == 7
    assert texts[5] == "more than 5 of these within an hour: no more is noted until it is over"
    assert texts[6] == "not authorized: submit_job", "what is known of whom has room of its own"
    now += 3601.0
    refused("after an hour")
    assert [text for _, _, text, _ in told(tmp_path)][7:] == [
        "45 of these were not noted, within an hour",
        "conn_manager: after an hour",
    ]
