"""Who asks without end at a site, a dishonest server above all, fills neither its disk nor its chained log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedscan.federation import hourly, refusals
from fedscan.federation.audit_log import AuditLog


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(refusals.time, "monotonic", lambda: now[0])
    return now


def chained(state: Path) -> list[str]:
    found = AuditLog(state).verify()
    assert found.ok, found.faults
    return [event.text for event in found.events]


def test_the_chained_log_has_so_many_an_hour_and_then_their_number(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hourly, "MOST", 3)
    for number in range(10):
        refusals.note(tmp_path, "deploy", [f"job {number}"])
    assert chained(tmp_path) == [
        "deploy: job 0",
        "deploy: job 1",
        "deploy: job 2",
        "more than 3 of these within an hour: no more is noted until it is over",
    ]
    lines = (tmp_path / refusals.FILE).read_text().splitlines()
    assert [json.loads(line)["reasons"] for line in lines] == [[f"job {number}"] for number in range(10)]
    clock[0] += 3601.0
    refusals.note(tmp_path, "deploy", ["later"])
    assert chained(tmp_path)[4:] == ["7 of these were not noted, within an hour", "deploy: later"]
    (tmp_path / "other").mkdir()
    refusals.note(tmp_path / "other", "deploy", ["another site's"])
    assert chained(tmp_path / "other") == ["deploy: another site's"]
