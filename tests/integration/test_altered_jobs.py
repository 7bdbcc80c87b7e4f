"""Jobs that were altered after they were signed, or signed by somebody else, or sent a second time: no site takes one.

A server that is dishonest keeps the jobs, and sends them: what it does there stands in `attacking/job_store.py`. The
federation is a real one, over mutual TLS; each refusal must stand in the chained log of whoever refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from job_store import Files, JobStore

from fedscan.federation import job_folder, wall
from fedscan.federation.audit_log import AuditLog, Event

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SITES = ("hosp-a", "hosp-b")
NOT_SIGNED = "does not pass signature verification"


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, lab: Callable[..., Any], make_site: Callable[..., Path]
) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("altered")
    with lab(folder, {site: make_site(folder, site) for site in SITES}) as one:
        yield one


@pytest.fixture(scope="module")
def store(running: Any) -> JobStore:
    return JobStore(running.federation)


@pytest.fixture
def job(repository: Path, tmp_path: Path, private_settings: Callable[..., list[str]]) -> Path:
    """A private job of one round that both sites would take."""
    settings = private_settings(*SITES, settings=("rounds=1", "tries_per_round=1"), answer_after_s=3.0)
    job_folder.new(repository / "jobs" / "ct_fedavg", tmp_path / "job", settings, SITES)
    return tmp_path / "job"


def plan_changed(app: str) -> Callable[[Files], Files]:
    """The plan has other numbers; all signatures are left as they were."""

    def change(files: Files) -> Files:
        path = f"job/{job_folder.CLIENT_PATH if app == job_folder.APP_SITES else job_folder.SERVER_PATH}"
        config = json.loads(files[path])
        config["plan"]["training"]["local_steps"] = 3
        return files | {path: json.dumps(config).encode()}

    return change


class Site:
    """What one site noted since it was looked at first, and what it did."""

    def __init__(self, running: Any, name: str) -> None:
        self._running, self.name = running, name
        self._noted, self._events, self._charged = self._now()

    def _now(self) -> tuple[int, int, int]:
        return len(self._running.reasons(self.name)), len(self._verified()), self._running.steps_charged(self.name)

    def _verified(self) -> tuple[Event, ...]:
        found = AuditLog(self._running.site(self.name).state).verify()
        assert found.ok, found.faults
        return found.events

    def reasons(self) -> list[str]:
        return list(self._running.reasons(self.name)[self._noted :])

    def refused(self) -> list[Event]:
        """Of the chained log, which holds."""
        return [event for event in self._verified()[self._events :] if event.what == "refused"]

    def must_have_done_nothing(self, job_id: str) -> None:
        """No step was charged, no tensor left, and nothing of the job lies in the kit."""
        assert self._running.steps_charged(self.name) == self._charged
        entries = wall.read(self._running.site(self.name).state / "wall.jsonl")
        assert not [e for e in entries if e["kind"] == "tensors" and e["direction"] == "out"]
        assert not (self._running.federation.kit(self.name) / job_id).exists()


def said(meta: dict[str, Any], site: str) -> str:
    (text,) = [entry for entry in meta["job_deploy_detail"] if entry.startswith(f"{site}: ")]
    return str(text)


def test_a_plan_that_was_changed_in_the_servers_store_is_refused_by_each_site(
    running: Any, store: JobStore, job: Path
) -> None:
    sites = [Site(running, name) for name in SITES]
    job_id = store.submitted(lambda: str(running.submit(job)), plan_changed(job_folder.APP_SITES))
    meta = running.wait(job_id)
    assert not meta["status"].endswith("COMPLETED")
    for site in sites:
        assert NOT_SIGNED in said(meta, site.name)
        site.must_have_done_nothing(job_id)
        assert [(event.job, NOT_SIGNED in event.text) for event in site.refused()] == [(job_id, True)]
        assert any(NOT_SIGNED in reason for reason in site.reasons())
