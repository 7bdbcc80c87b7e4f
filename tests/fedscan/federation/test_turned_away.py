"""What NVFlare's server drops without telling the controller; in real processes in test_replayed_answers.py."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from nvflare.apis.impl.wf_comm_server import WFCommServer
from nvflare.fuel.utils.log_utils import get_obj_logger
from nvflare.private.fed.server.server_runner import ServerRunner

from fedscan.federation import turned_away
from fedscan.federation.audit_log import AuditLog
from fedscan.federation.records import RoundRecord, SiteEntry
from fedscan.federation.server_round import NO_ANSWER
from fedscan.federation.turned_away import TurnedAway

RECORD = RoundRecord(
    event="round",
    time="2030-01-01T00:00:00+00:00",
    run_id="0" * 32,
    plan_digest="0" * 64,
    round=3,
    sites={
        "a": SiteEntry(answered=True),
        "b": SiteEntry(answered=False, refused="its answer cannot be read"),
        "c": SiteEntry(answered=False, refused=NO_ANSWER),
    },
)


@pytest.fixture
def told() -> Iterator[list[tuple[str, str]]]:
    found: list[tuple[str, str]] = []
    original = ServerRunner.process_submission
    loggers = [get_obj_logger(kind) for kind in (ServerRunner, WFCommServer)]
    before = [(logger, list(logger.handlers), logger.level) for logger in loggers]
    turned_away.listen(lambda site, reason: found.append((site, reason)))
    yield found
    ServerRunner.process_submission = original
    for logger, handlers, level in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("client task result is already received - submission dropped", turned_away.AGAIN),
        ("task is already finished - submission dropped", turned_away.NO_TASK),
        ("invalid result submission: not the same job id - dropped", turned_away.OTHER_JOB),
        ("submission client mismatch for train:7 - got b but task is assigned to a", turned_away.OTHER_SITE),
    ],
)
def test_nvflares_words_become_a_sites_by_its_login(
    told: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, words: str, reason: str
) -> None:
    def says(self: object, client: object, *others: object) -> None:
        get_obj_logger(WFCommServer).info("[identity=server, peer=whoever it says it is]: %s", words)

    monkeypatch.setattr(turned_away, "_process", says)
    runner = ServerRunner.__new__(ServerRunner)
    runner.process_submission(SimpleNamespace(name="hosp-b"), "train", "7", None, None)
    assert told == [("hosp-b", reason)]
    get_obj_logger(WFCommServer).log(logging.INFO, words)
    assert len(told) == 1, "outside of a submission nobody said it"


def test_each_reason_once_and_then_forgotten() -> None:
    found = TurnedAway()
    for _ in range(3):
        found.add("a", turned_away.AGAIN)
    for number in range(20):
        found.add("stranger", f"reason {number}")
    sites = found.into(RECORD).sites
    assert sites["a"].also_refused == (turned_away.AGAIN,)
    assert sites["a"].answered
    assert (sites["stranger"].answered, len(sites["stranger"].also_refused or ())) == (False, 8)
    assert sites["b"] == RECORD.sites["b"]
    assert found.into(RECORD) == RECORD


def test_the_chained_log_holds_each_answer_that_was_not_taken_and_no_silence(tmp_path: Path) -> None:
    found = TurnedAway()
    found.add("a", turned_away.OTHER_JOB)
    log = AuditLog(tmp_path)
    turned_away.note(log, found.into(RECORD), "job-1")
    stopped = RECORD.model_copy(update={"event": "stopped", "sites": {}, "reason": "its submitter is revoked"})
    turned_away.note(log, stopped, "job-1")
    start = f"answer, round 3 of run {'0' * 32}: "
    assert [(e.what, e.who, e.text, e.job) for e in log.verify().events] == [
        ("refused", "a", start + turned_away.OTHER_JOB, "job-1"),
        ("refused", "b", start + "its answer cannot be read", "job-1"),
        ("refused", "", f"run {'0' * 32} stopped: its submitter is revoked", "job-1"),
    ]
