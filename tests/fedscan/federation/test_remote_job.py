"""A job whose rounds are done, and which NVFlare keeps running for a site that is gone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from fedscan.federation import admin, remote_job
from fedscan.federation.admin import NotNowError
from fedscan.federation.records import Event, RoundRecord
from fedscan.federation.remote_job import Listener, Seen


def record(event: Event, number: int) -> RoundRecord:
    return RoundRecord(
        event=event, time="2026-01-01T00:00:00+00:00", run_id="a" * 32, plan_digest="b" * 64, round=number
    )


class Job:
    """At a server: it runs until it is aborted."""

    def __init__(self) -> None:
        self.aborted = 0

    def meta(self, _session: Any, _job_id: str) -> dict[str, Any]:
        return {"status": "FINISHED:ABORTED" if self.aborted else "RUNNING"}

    def abort(self, _session: Any, _job_id: str) -> None:
        self.aborted += 1

    @contextlib.contextmanager
    def session(self, _timeout_s: float) -> Iterator[None]:
        yield None


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Job:
    made = Job()
    now = [0.0]
    monkeypatch.setattr(admin, "meta", made.meta)
    monkeypatch.setattr(admin, "abort", made.abort)
    monkeypatch.setattr(admin, "ask_job", _not_now)
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s))
    monkeypatch.setattr(remote_job, "time", clock)
    return made


def _not_now(*_: Any) -> None:
    raise NotNowError("the job does not answer")


def _follow(job: Job, seen: Seen, *, release: bool) -> list[str]:
    said: list[str] = []
    remote_job.follow(job, "id", Listener(say=said.append), seen, release=release)  # type: ignore[arg-type]
    return said


def test_it_is_ended_after_a_minute(job: Job) -> None:
    said = _follow(job, Seen(records=[record("started", 0), record("finished", 3)]), release=True)
    assert job.aborted == 1
    assert "all rounds are done; NVFlare waits for a site that is gone: ending the job" in said
    assert 60 < remote_job.time.monotonic() < 65


@pytest.mark.parametrize(
    ("seen", "release"),
    [
        pytest.param(Seen(records=[record("started", 0), record("round", 0)]), True, id="rounds are left"),
        pytest.param(Seen(records=[record("started", 0), record("finished", 3)]), False, id="only looked at"),
    ],
)
def test_another_is_left_alone(job: Job, monkeypatch: pytest.MonkeyPatch, seen: Seen, release: bool) -> None:
    """For ten minutes of looking."""
    asked = 0

    def ending(_session: Any, _job_id: str) -> dict[str, Any]:
        nonlocal asked
        asked += 1
        return {"status": "RUNNING" if asked < 600 else "FINISHED:COMPLETED"}

    monkeypatch.setattr(admin, "meta", ending)
    said = _follow(job, seen, release=release)
    assert job.aborted == 0
    assert not [text for text in said if "ending the job" in text]
